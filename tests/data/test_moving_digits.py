"""The set is what it says: real, reproducible, and without shortcuts."""

import dataclasses
import hashlib
import io
import itertools
import math
import pathlib
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy import stats
from sklearn import decomposition, ensemble, linear_model, pipeline

from mgjax import cli
from mgjax.data import digits, moving_digits, sources
from mgjax.data.digits import MOTIONS, Spec
from mgjax.errors import ConfigError

NUM_FRAMES = 34
# 12 motions in 6 pairs, of which a coin finds half, and 4 numbers of swings.
PAIR_CHANCE = (12 / 2 + 4 / 4) / 16
SMALL = Spec(num_train=256, num_validation=192, num_test=16)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  return moving_digits.prepare(
    tmp_path_factory.mktemp('data'), SMALL, num_workers=1, progress=False
  )


def read(data_dir, split):
  return tfds.builder_from_directory(data_dir).as_data_source(split)


def decode(video):
  """Returns the luma of all frames, [T, H, W]."""
  with av.open(io.BytesIO(video)) as container:
    height = container.streams.video[0].height
    return np.stack(
      [f.to_ndarray()[:height] for f in container.decode(video=0)]
    )


def trajectories(num_per_class, seed):
  """Returns trajectories [N, 4, T] and labels [N]."""
  rng = np.random.default_rng(seed)
  labels = np.tile(np.arange(len(MOTIONS)), num_per_class)
  paths = [
    digits.trajectory(MOTIONS[label], NUM_FRAMES, rng) for label in labels
  ]
  return np.stack(paths), labels


def sample(paths, num_frames, stride_frames, seed=0):
  """Samples frames from each trajectory as a loader does: [N, 4, T]."""
  span = (num_frames - 1) * stride_frames
  starts = np.random.default_rng(seed).integers(
    0, NUM_FRAMES - span, size=len(paths)
  )
  index = starts[:, None] + np.arange(num_frames) * stride_frames
  return np.take_along_axis(paths, index[:, None], axis=2)


def steps(frames):
  """Returns the shortest way from each frame to the next, wrapping around."""
  return (np.diff(frames, axis=2) + 0.5) % 1 - 0.5


def forest_accuracy(features, labels):
  """Trains a forest on three quarters and returns accuracy on the others."""
  num_train = len(labels) * 3 // 4
  forest = ensemble.ExtraTreesClassifier(80, random_state=0)
  forest.fit(features[:num_train], labels[:num_train])
  return forest.score(features[num_train:], labels[num_train:])


def margin(chance, num, sigmas=4):
  return sigmas * math.sqrt(chance * (1 - chance) / num)


# ---- Reproducible ----


def checksums(data_dir):
  return {
    p.name: hashlib.sha256(p.read_bytes()).hexdigest()
    for p in sorted(pathlib.Path(data_dir).glob('*.array_record*'))
  }


def test_number_of_workers_and_reruns_do_not_change_a_byte(tmp_path):
  spec = Spec(num_train=20, num_validation=10, num_test=6)
  made = [
    checksums(
      moving_digits.prepare(
        tmp_path / f'run{run}', spec, num_workers=workers, progress=False
      )
    )
    for run, workers in enumerate((1, 1, 2))
  ]
  assert len(made[0]) == 3
  assert made[0] == made[1] == made[2]


@pytest.mark.parametrize(
  'spec, split, index',
  [
    (Spec(seed=1), 'train', 3),
    (Spec(), 'validation', 3),
    (Spec(), 'test', 3),
    (Spec(), 'train', 4),
  ],
)
def test_every_clip_is_different(spec, split, index):
  clip = digits.make_clip(Spec(), 'train', 3)
  other = digits.make_clip(spec, split, index)
  assert not np.array_equal(clip.frames, other.frames)
  assert not np.array_equal(clip.path.x, other.path.x)


def test_clip_does_not_depend_on_the_number_of_clips():
  clip = digits.make_clip(Spec(), 'train', 3)
  same = digits.make_clip(SMALL, 'train', 3)
  assert np.array_equal(clip.frames, same.frames) and clip.label == same.label


@pytest.mark.parametrize(
  'spec, want',
  [
    (Spec(), 'bf02eebee7bd356f'),
    (Spec(labels='digit_motion'), '4189b1664f01deb2'),
    (Spec(imbalance=100.0), '5affad308486159d'),
  ],
)
def test_training_clips_are_those_of_version_1(spec, want):
  digest = hashlib.sha256()
  for i in range(0, 4000, 500):
    clip = digits.make_clip(spec, 'train', i)
    # Sines differ in the last bit from one processor to another.
    path = np.rint(np.stack(clip.path) * 1e6).ravel()
    drawn = np.array([clip.label, clip.glyph, *path], np.int64)
    digest.update(drawn.tobytes())
  assert digest.hexdigest()[:16] == want


def test_training_frames_are_those_of_version_1():
  row = digits.make_clip(Spec(), 'train', 3999).frames[20, 40, ::10]
  want = [[101, 182, 132], [177, 253, 213], [87, 181, 168], [87, 156, 147]]
  want += [[85, 156, 156], [99, 162, 135], [117, 166, 128], [103, 181, 137]]
  # OpenCV rounds differently from one processor to another.
  np.testing.assert_allclose(row, want, atol=1)


# ---- Real video, readable without TensorFlow ----


def test_videos_are_h264_with_the_promised_shape(prepared):
  for split, num in SMALL.splits.items():
    source = read(prepared, split)
    assert len(source) == num
    for example in (source[0], source[num - 1]):
      with av.open(io.BytesIO(example['video'])) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == 'h264'
        assert stream.average_rate == digits.FPS
        frames = list(container.decode(video=0))
      assert len(frames) == NUM_FRAMES
      assert (frames[0].width, frames[0].height) == (80, 80)
      # A group of pictures is short, so that random access is cheap.
      keys = [i for i, f in enumerate(frames) if f.key_frame]
      assert max(np.diff([*keys, NUM_FRAMES])) <= 16


def test_data_set_opens_without_tensorflow(prepared):
  builder = tfds.builder_from_directory(prepared)
  example = builder.as_data_source('train')[0]
  assert isinstance(example['video'], bytes)
  assert isinstance(example['label'], int)
  assert example['id'].startswith(b'train_')
  assert tuple(builder.info.features['label'].names) == MOTIONS
  assert 'tensorflow' not in sys.modules


def test_encoder_gives_the_same_bytes_whatever_is_in_memory():
  # Freed memory full of noise brought differences out in one clip of two.
  for i in range(8):
    frames = digits.make_clip(Spec(), 'train', i).frames
    encoded = set()
    for seed in range(4):
      rng = np.random.default_rng(seed)
      _ = [rng.bytes(1 << size) for size in (12, 14, 15, 16, 17, 18)]
      encoded.add(digits.encode(frames))
    assert len(encoded) == 1


def test_encoding_keeps_the_picture():
  frames = digits.make_clip(Spec(), 'train', 0).frames
  with av.open(io.BytesIO(digits.encode(frames))) as container:
    decoded = [f.to_ndarray(format='rgb24') for f in container.decode(video=0)]
  error = np.mean((np.stack(decoded) - frames.astype(float)) ** 2)
  assert 10 * np.log10(255**2 / error) > 32


# ---- What is drawn is what the label says ----


@pytest.mark.parametrize(
  'motion, coordinate, sign',
  [
    ('right', 0, 1),
    ('left', 0, -1),
    ('down', 1, 1),
    ('up', 1, -1),
    ('clockwise', 2, 1),
    ('counter_clockwise', 2, -1),
    ('grow', 3, 1),
    ('shrink', 3, -1),
  ],
)
def test_steady_motion_goes_where_its_name_says(motion, coordinate, sign):
  rng = np.random.default_rng(0)
  for _ in range(20):
    path = np.stack(digits.trajectory(motion, NUM_FRAMES, rng))
    moved = steps(path[None])[0].sum(axis=1)
    if coordinate == 3:  # Wraps before the tremor, so count most steps only.
      moved[3] = np.median(np.diff(path[3, ::4])) * 10
    assert sign * moved[coordinate] > 0.3
    others = np.delete(moved, [coordinate] if coordinate > 1 else [0, 1])
    assert np.abs(others).max() < 0.1


def still(x, y, turn, size):
  return digits.Trajectory(*np.array([[x], [y], [turn], [size]]))


def drawn_at(path, glyph):
  """Returns the centroid (x, y) of the digit in pixels, at 80 px."""
  draw = lambda image: digits.render(
    path, glyph=image, size_px=80, rng=np.random.default_rng(0)
  )[0].astype(float)
  # Where, not how much: contrast depends on the texture behind.
  weight = np.abs(draw(glyph) - draw(np.zeros_like(glyph))).sum(-1) > 60
  y, x = np.indices(weight.shape)
  return (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()


@pytest.fixture
def one_copy(monkeypatch):
  """Draws the first of the four copies only."""
  first = digits._COPIES[:1]
  monkeypatch.setattr(digits, '_COPIES', first)


def test_four_copies_of_the_digit_are_a_cell_apart(monkeypatch):
  def drawn(copies):
    monkeypatch.setattr(digits, '_COPIES', copies)
    frame, plain = (
      digits.render(
        still(0.2, 0.3, 0.1, 0.5),
        glyph=np.full((8, 8), image, np.uint8),
        size_px=80,
        rng=np.random.default_rng(0),
      )[0].astype(int)
      for image in (16, 0)
    )
    return np.abs(frame - plain).sum(-1) > 60

  copies = digits._COPIES
  assert copies.tolist() == [[0, 0], [0, 0.5], [0.5, 0.5], [0.5, 0]]
  all_four, first = drawn(copies), drawn(copies[:1])
  assert all_four.sum() == pytest.approx(4 * first.sum(), rel=0.1)
  assert all_four[first].mean() > 0.9


def test_digit_is_drawn_where_the_trajectory_says(one_copy):
  glyph = np.full((8, 8), 16, np.uint8)
  x, y = drawn_at(still(0.25, 0.7, 0.1, 0.5), glyph)
  assert (x, y) == pytest.approx((20, 56), abs=0.6)


def test_positive_turns_are_clockwise_on_the_screen(one_copy):
  glyph = np.zeros((8, 8), np.uint8)
  glyph[:2, 3:5] = 16  # A mark at twelve o'clock.
  x, y = drawn_at(still(0.5, 0.5, 0.25, 1.0), glyph)
  assert x > 46 and y == pytest.approx(40, abs=0.8)  # At three o'clock.


def test_digit_crosses_the_edge_without_a_seam():
  def shape_at(x, image):
    frame = digits.render(
      still(x, 0.5, 0.1, 1.0),
      glyph=np.full((8, 8), image, np.uint8),
      size_px=80,
      rng=np.random.default_rng(0),
    )[0]
    return frame.astype(int)

  plain = shape_at(0.5, 0)
  inside, across = (
    np.abs(shape_at(x, 16) - plain).sum(-1) > 60 for x in (0.5, 0.0)
  )
  # At the rim the contrast depends on the texture behind, hence not equal.
  differ = np.roll(inside, 40, axis=1) != across
  assert inside.sum() > 400 and differ.sum() < 0.1 * inside.sum()


def test_splits_show_different_digits():
  shown = {s: digits.glyph_indices(s).tolist() for s in digits.SPLITS}
  assert {s: len(glyphs) for s, glyphs in shown.items()} == {
    'train': 1437,
    'validation': 180,
    'test': 180,
  }
  assert len(set().union(*shown.values())) == 1797
  for split, glyphs in shown.items():
    for i in range(20):
      assert digits.make_clip(SMALL, split, i).glyph in glyphs


def test_digit_motion_shows_the_digit_of_the_label():
  spec = Spec(labels='digit_motion')
  names = digits.class_names('digit_motion')
  assert len(names) == 40
  for split, i in itertools.product(('validation', 'test'), range(20)):
    clip = digits.make_clip(spec, split, i)
    digit, motion = names[clip.label].split('_', 1)
    of_digit = digits.glyph_indices(split, int(digit))
    assert clip.glyph in of_digit and clip.motion == motion


# ---- No shortcuts ----


def test_labels_are_balanced_and_do_not_follow_the_index():
  labels = [digits.label_of(Spec(), 'train', i) for i in range(4000)]
  assert np.ptp(np.bincount(labels)) == 0
  for period in (2, 16, 32):
    table = np.histogram2d(labels, np.arange(4000) % period, bins=(16, period))[
      0
    ]
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_every_class_has_the_same_positions_angles_and_sizes():
  paths, labels = trajectories(250, seed=0)
  smallest = 1.0
  for label in range(len(MOTIONS)):
    own, others = paths[labels == label], paths[labels != label]
    for frame in (0, 11, 22, 33):
      for coordinate in range(4):
        test = stats.ks_2samp(
          own[:, coordinate, frame], others[:, coordinate, frame]
        )
        smallest = min(smallest, test.pvalue)
  # Of 256 p-values the smallest is below 1e-5 in one run of 400.
  assert smallest > 1e-5


def test_coordinates_are_independent_within_a_frame():
  paths, labels = trajectories(150, seed=1)
  accuracy = forest_accuracy(paths[:, :, 20], labels)
  assert accuracy < 1 / 16 + margin(1 / 16, len(labels) // 4)


@pytest.mark.parametrize('num_frames, stride_frames', [(8, 4), (16, 2)])
def test_unordered_frames_do_not_tell_a_pair_apart(num_frames, stride_frames):
  paths, labels = trajectories(150, seed=2)
  frames = sample(paths, num_frames, stride_frames)
  # What remains of a set: where it lies does not matter (all is uniform), so
  # distances from its centre, their gaps and their spread.
  middle = np.angle(np.exp(2j * np.pi * frames).mean(2, keepdims=True))
  offsets = np.sort((frames - middle / (2 * np.pi) + 0.5) % 1 - 0.5, axis=2)
  gaps = np.sort(np.diff(offsets, axis=2), axis=2)
  features = np.concatenate([offsets, gaps, offsets.std(2, keepdims=True)], 2)
  accuracy = forest_accuracy(features.reshape(len(labels), -1), labels)
  # That an angle changed at all is no secret: chance is that of the pairs.
  num_test = len(labels) // 4
  assert accuracy < PAIR_CHANCE + margin(PAIR_CHANCE, num_test)


def test_more_frames_tell_more():
  paths, labels = trajectories(250, seed=3)
  accuracy = {}
  for num_frames, stride_frames in ((2, 31), (4, 10), (8, 4), (16, 2), (4, 2)):
    moves = steps(sample(paths, num_frames, stride_frames))
    so_far = np.cumsum(moves, axis=2)
    spectrum = np.abs(np.fft.rfft(so_far[:, :2], axis=2))
    pace = np.hypot(moves[:, 0], moves[:, 1])[:, None]
    parts = [moves, so_far, pace, np.sort(pace, axis=2), spectrum]
    features = np.concatenate([p.reshape(len(labels), -1) for p in parts], 1)
    accuracy[num_frames, stride_frames] = forest_accuracy(features, labels)
  assert accuracy[2, 31] < 0.6
  assert accuracy[4, 10] > accuracy[2, 31] + 0.2
  assert accuracy[8, 4] > accuracy[4, 10] + 0.02
  assert accuracy[16, 2] > 0.95
  # A short span is not enough, however dense.
  assert accuracy[4, 2] < accuracy[4, 10] - 0.1


def test_one_decoded_frame_tells_nothing(prepared):
  data = {}
  for split, times in (('train', (4, 17, 30)), ('validation', (17,))):
    frames, labels = [], []
    for example in read(prepared, split):
      luma = decode(example['video'])
      for t in times:
        small = cv2.resize(luma[t], (20, 20), interpolation=cv2.INTER_AREA)
        # Edges too: what the encoder leaves behind a moving digit is faint.
        detail = cv2.Laplacian(luma[t].astype(np.float32), cv2.CV_32F)
        detail = cv2.resize(np.abs(detail), (20, 20))
        frames.append(np.concatenate([small.ravel(), detail.ravel()]))
        labels.append(example['label'])
    data[split] = np.array(frames, float), np.array(labels)
  classifier = pipeline.make_pipeline(
    decomposition.PCA(40, whiten=True, random_state=0),
    linear_model.LogisticRegression(C=0.1, max_iter=500),
  ).fit(*data['train'])
  accuracy = classifier.score(*data['validation'])
  assert accuracy < 1 / 16 + margin(1 / 16, SMALL.num_validation)


@pytest.mark.slow
def test_a_convolutional_network_learns_nothing_from_one_frame():
  import jax
  import jax.numpy as jnp
  import optax
  from flax import linen as nn

  spec = Spec(num_train=1600, num_validation=800)

  def load(split):
    clips = (
      digits.make_clip(spec, split, i) for i in range(spec.splits[split])
    )
    made = [(decode(digits.encode(c.frames)), c.label) for c in clips]
    return np.stack([m[0] for m in made]), np.array([m[1] for m in made])

  class Net(nn.Module):
    @nn.compact
    def __call__(self, frames):
      x = (frames[..., None].astype(jnp.float32) - 127) / 50
      for features in (16, 32, 64):
        x = nn.Conv(features, (5, 5), strides=2)(x)
        x = nn.relu(nn.GroupNorm(8)(x))
      return nn.Dense(len(MOTIONS))(x.mean((1, 2)))

  net, optimizer = Net(), optax.adam(2e-3)
  params = net.init(jax.random.key(0), jnp.zeros((1, 80, 80)))
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state, frames, labels):
    def loss(params):
      return optax.softmax_cross_entropy_with_integer_labels(
        net.apply(params, frames), labels
      ).mean()

    updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state

  videos, labels = load('train')
  rng = np.random.default_rng(0)
  for _ in range(600):
    rows = rng.integers(len(labels), size=64)
    frames = videos[rows, rng.integers(NUM_FRAMES, size=64)]
    params, opt_state = step(params, opt_state, frames, labels[rows])
  videos, labels = load('validation')
  guesses = np.concatenate(
    [
      net.apply(params, videos[i : i + 100, 20]).argmax(-1)
      for i in range(0, len(labels), 100)
    ]
  )
  accuracy = np.mean(guesses == labels)
  assert accuracy < 1 / 16 + margin(1 / 16, len(labels))


# ---- Preparing ----


def test_second_call_returns_at_once(prepared, capsys):
  before = checksums(prepared)
  out_dir = pathlib.Path(prepared).parents[2]
  assert moving_digits.prepare(out_dir, SMALL) == prepared
  assert 'already prepared' in capsys.readouterr().err
  assert checksums(prepared) == before


def test_half_written_set_is_started_afresh(tmp_path):
  spec = Spec(num_train=4, num_validation=2, num_test=1)
  config_dir = tmp_path / 'moving_digits' / moving_digits.config_name(spec)
  killed = config_dir / 'incomplete.ABC123_2.0.0'
  killed.mkdir(parents=True)
  (killed / 'moving_digits-train.array_record').write_bytes(b'half')
  data_dir = moving_digits.prepare(tmp_path, spec, progress=False)
  assert [p.name for p in config_dir.iterdir()] == ['2.0.0']
  assert len(read(data_dir, 'train')) == 4


def test_the_largest_set_has_50_000_clips():
  spec = Spec(num_train=39_000, num_validation=1_000, num_test=10_000)
  assert sum(spec.splits.values()) == 50_000
  with pytest.raises(ConfigError, match='num_test is 50001; use at most 50000'):
    Spec(num_train=39_000, num_validation=1_000, num_test=10_001)


def test_a_set_without_test_clips_has_no_such_split_and_another_name(tmp_path):
  spec = Spec(num_train=2, num_validation=1, num_test=0, num_frames=8)
  folder = moving_digits.prepare(tmp_path, spec, progress=False)
  assert set(tfds.builder_from_directory(folder).info.splits) == {
    'train',
    'validation',
  }
  whole, demo = (moving_digits.CONFIGS[n] for n in ('motion', 'motion_demo'))
  assert dataclasses.replace(whole, num_test=0) == demo


def test_version_1_opens_beside_version_2(tmp_path, monkeypatch):
  spec = Spec(num_train=2, num_validation=1, num_test=1, num_frames=8)
  for version in ('1.0.0', '2.0.0'):
    monkeypatch.setattr(moving_digits, 'VERSION', version)
    monkeypatch.setattr(
      moving_digits.MovingDigits, 'VERSION', tfds.core.Version(version)
    )
    folder = pathlib.Path(moving_digits.prepare(tmp_path, spec, progress=False))
    assert folder.name == version
  name = f'moving_digits/{moving_digits.config_name(spec)}'
  for named, version in (
    (name, '2.0.0'),
    (f'{name}:2.0.0', '2.0.0'),
    (f'{name}:1.0.0', '1.0.0'),
  ):
    source = sources.open_source(tmp_path, named, 'train')
    assert (source.name, source.folder.name) == (named, version)
    assert len(source) == 2 and source[1].id == 'train_00001'


def test_known_specs_have_short_names_and_others_tell_every_field():
  name = moving_digits.config_name
  assert [name(s) for s in moving_digits.CONFIGS.values()] == [
    'motion',
    'motion_demo',
    'motion_tiny',
    'digit_motion',
    'motion_long_tail',
    'motion_100px',
    'motion_120px',
  ]
  others = [
    Spec(num_train=1),
    Spec(num_validation=1),
    Spec(num_test=1),
    Spec(size_px=64),
    Spec(num_frames=32),
    Spec(seed=1),
    Spec(labels='digit_motion', seed=1),
    Spec(imbalance=2.0),
  ]
  assert len({name(s) for s in others}) == len(others)


def run(*arguments):
  """Runs the command; returns its exit code."""
  return cli.run(
    moving_digits.main,
    moving_digits.define_flags,
    ['moving_digits', *arguments],
    takes_config=False,
  )


def test_command_prints_the_name_to_train_on(tmp_path, capsys):
  args = '--config=motion_tiny --num_train=3 --num_validation=2 --num_frames=8'
  assert run(f'--out={tmp_path}', *args.split()) == 0
  name = 'moving_digits/motion_3_2_64_80px_8f_seed0'
  assert f'--config.data.name={name}' in capsys.readouterr().err
  assert (tmp_path / name / moving_digits.VERSION).is_dir()
  assert [p.name for p in tmp_path.iterdir()] == ['moving_digits']


@pytest.mark.parametrize(
  'argument',
  [
    '--config=kinetics',
    '--labels=colour',
    '--num_train=0',
    '--num_train=50000',
    '--num_test=-1',
    '--num_train=many',
    '--size_px=81',
    '--num_frames=2',
    '--seed=-1',
    '--imbalance=0.5',
    '--workers=-1',
    '--sizepx=80',
  ],
)
def test_bad_argument_is_one_line_and_code_2(argument, tmp_path, capsys):
  assert run(f'--out={tmp_path}', argument) == 2
  message = capsys.readouterr().err
  assert message.startswith('error: ') and message.count('\n') == 1
  assert not any(tmp_path.iterdir())


def test_unknown_config_names_the_known_ones(tmp_path):
  with pytest.raises(ConfigError, match='motion_tiny'):
    moving_digits.prepare(tmp_path, 'motions')


def test_program_runs(tmp_path):
  command = [sys.executable, '-m', 'mgjax.data.moving_digits', '--num_train=4']
  command += ['--num_validation=1', '--num_test=1', f'--out={tmp_path}']
  command += ['--workers=2']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert '6/6' in done.stderr and 'Traceback' not in done.stderr
