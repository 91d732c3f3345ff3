"""Augmentation against NumPy loops; what must hold whatever is drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.config import fields, rules
from mgjax.setup import augmentation
from mgjax.step import augment, pixel_operations

FILL = (10.0, 20.0, 30.0)
NUM_CLASSES = 5


def make_video(batch=3, frames=2, height=9, width=7, seed=0):
  """Random pixels that are the same in all frames of a clip."""
  rng = np.random.default_rng(seed)
  picture = rng.integers(0, 256, (batch, 1, height, width, 3))
  return np.repeat(picture, frames, 1).astype(np.float32)


def make_config(**options):
  config = fields.base()
  config.model.num_classes = NUM_CLASSES
  config.augment.update(options)
  return rules.validate(config)


def make_batch(**sizes):
  video = make_video(**sizes).astype(np.uint8)
  label = np.arange(len(video), dtype=np.int32) % NUM_CLASSES
  return {'video': video, 'label': label, 'flip': np.zeros(len(video), bool)}


EVERYTHING = {
  'randaugment_ops': 1,
  'brightness': 0.4,
  'contrast': 0.4,
  'saturation': 0.4,
  'hue': 0.1,
  'erase_probability': 0.5,
  'mixup_alpha': 0.8,
  'cutmix_alpha': 1.0,
}


@pytest.fixture(scope='module')
def augmented():
  """A batch before and after everything that there is."""
  batch = make_batch(batch=4)
  run = jax.jit(augmentation.augment(make_config(**EVERYTHING)))
  return batch, run(batch, jax.random.key(0)), run


def test_everything_off_is_no_function_at_all():
  assert augmentation.augment(make_config()) is None


@pytest.mark.parametrize('name', EVERYTHING)
def test_every_field_turns_something_on(name):
  batch = make_batch()
  config = make_config(**{name: EVERYTHING[name]})
  run = augmentation.augment(config)
  assert run is not None
  after = jax.eval_shape(run, batch, jax.random.key(0))
  assert after['video'].shape == batch['video'].shape
  mixed = name in ('mixup_alpha', 'cutmix_alpha')
  assert after['label'].shape == ((3, NUM_CLASSES) if mixed else (3,))


def test_shapes_and_types_stay_and_pixels_change(augmented):
  before, after, _ = augmented
  assert after['video'].shape == before['video'].shape
  assert after['video'].dtype == np.uint8
  np.testing.assert_array_equal(after['flip'], before['flip'])
  assert (np.asarray(after['video']) != before['video']).mean() > 0.5


def test_all_frames_of_a_clip_change_alike(augmented):
  video = np.asarray(augmented[1]['video'])
  np.testing.assert_array_equal(video[:, 0], video[:, 1])


def test_the_weights_of_the_labels_add_up_to_one(augmented):
  label = np.asarray(augmented[1]['label'])
  assert label.dtype == np.float32
  np.testing.assert_allclose(label.sum(1), 1, atol=1e-6)
  assert (label >= 0).all() and (label.max(1) < 1).any()


def test_a_key_decides_everything(augmented):
  batch, after, run = augmented
  again = run(batch, jax.random.key(0))
  other = run(batch, jax.random.key(1))
  np.testing.assert_array_equal(after['video'], again['video'])
  assert (np.asarray(after['video']) != np.asarray(other['video'])).any()


# Operations.


APPLY = jax.jit(augment.apply_operation, static_argnames='fill')
WARP = jax.jit(pixel_operations.warp, static_argnames='fill')


def operate(video, name, strength):
  op = np.full(len(video), augment.OPERATIONS.index(name))
  strength = np.full(len(video), strength, np.float32)
  return np.asarray(
    APPLY(jnp.asarray(video), jnp.asarray(op), jnp.asarray(strength), fill=FILL)
  )


def blend(start, video, factor):
  return np.clip(start + factor * (video - start), 0, 255)


def grey(video):
  return video @ np.array([0.299, 0.587, 0.114])


def smooth(video):
  """A weighted mean of 3 x 3 pixels, but on the border; a loop."""
  out = video.astype(np.float64)
  for i in range(1, video.shape[2] - 1):
    for j in range(1, video.shape[3] - 1):
      around = video[:, :, i - 1 : i + 2, j - 1 : j + 2].sum((2, 3))
      out[:, :, i, j] = (around + 4 * video[:, :, i, j]) / 13
  return out


def stretched(video):
  low, high = (f(video, (1, 2, 3), keepdims=True) for f in (np.min, np.max))
  return (video - low) * 255 / (high - low)


REFERENCES = {
  'identity': (1.0, lambda v: v),
  'brightness': (0.5, lambda v: np.clip(1.45 * v, 0, 255)),
  'colour': (-0.5, lambda v: blend(grey(v)[..., None], v, 0.55)),
  'contrast': (
    1.0,
    lambda v: blend(grey(v).mean((1, 2, 3))[:, None, None, None, None], v, 1.9),
  ),
  'sharpness': (1.0, lambda v: blend(smooth(v), v, 1.9)),
  'posterize': (-1.0, lambda v: v // 16 * 16),
  'solarize': (0.5, lambda v: np.where(v >= 127.5, 255 - v, v)),
  'auto_contrast': (0.3, lambda v: stretched(v)),
}


@pytest.mark.parametrize('name', REFERENCES)
def test_colour_operations_equal_numpy(name):
  video = make_video() * 0.8 + 20
  strength, reference = REFERENCES[name]
  # float32 at 255.
  np.testing.assert_allclose(
    operate(video, name, strength), reference(video), atol=2e-3
  )


def test_clips_of_a_batch_have_operations_of_their_own():
  video = make_video()
  names = ('solarize', 'identity', 'rotate')
  got = APPLY(
    jnp.asarray(video),
    jnp.array([augment.OPERATIONS.index(n) for n in names]),
    jnp.array([1.0, 1.0, 0.5]),
    fill=FILL,
  )
  for i, (name, strength) in enumerate(zip(names, (1, 1, 0.5), strict=True)):
    alone = operate(video, name, strength)[i]
    np.testing.assert_allclose(got[i], alone, atol=1e-3)


def warped(video, **changes):
  zero = jnp.zeros(len(video))
  names = ('angle', 'shear_x', 'shear_y', 'shift_x', 'shift_y')
  values = {name: zero + changes.get(name, 0.0) for name in names}
  return np.asarray(WARP(jnp.asarray(video), **values, fill=FILL))


def test_a_quarter_turn_is_exact():
  video = make_video(height=9, width=9)
  got = warped(video, angle=np.pi / 2)
  # At x columns from the centre stands what was x rows from it.
  np.testing.assert_allclose(got, np.rot90(video, 1, (2, 3)), atol=1e-2)


def test_a_shift_by_whole_pixels_is_exact_and_filled():
  video = make_video()
  want = np.broadcast_to(np.array(FILL, np.float32), video.shape).copy()
  want[:, :, :-2, 3:] = video[:, :, 2:, :-3]
  np.testing.assert_allclose(warped(video, shift_x=-3, shift_y=2), want)


def test_a_shear_equals_a_loop():
  video = make_video(height=9, width=7)
  got = warped(video, shear_x=0.25)
  fill = np.array(FILL)
  for y in range(9):
    for x in range(7):
      source = x + 0.25 * (y - 4)
      left = int(np.floor(source))
      pixels = [
        video[:, :, y, c] if 0 <= c < 7 else fill for c in (left, left + 1)
      ]
      want = pixels[0] + (source - left) * (pixels[1] - pixels[0])
      assert np.abs(got[:, :, y, x] - want).max() < 1e-3


def test_hue_turns_by_thirds_permute_pure_colours_roughly():
  """A third of a turn leads red to green or blue; grey stays grey."""
  colours = np.zeros((1, 1, 1, 2, 3), np.float32)
  colours[0, 0, 0, 0] = (140, 90, 90)
  colours[0, 0, 0, 1] = (90, 90, 90)
  full, third = (
    np.asarray(pixel_operations.turn_hue(jnp.asarray(colours), jnp.array([t])))
    for t in (1.0, 1 / 3)
  )
  np.testing.assert_allclose(full, colours, atol=0.05)
  np.testing.assert_allclose(third[0, 0, 0, 1], 90, atol=0.05)
  assert third[0, 0, 0, 0].argmax() != 0
  np.testing.assert_allclose(grey(third), grey(colours), atol=0.5)


# Erasing and mixing.


def options_of(**changes):
  return augment.Augmentation(**make_config(**changes).augment)


def test_an_erased_rectangle_has_the_size_and_the_colour_asked_for():
  video = np.full((64, 2, 20, 30, 3), 200, np.float32)
  got = np.asarray(
    jax.jit(
      functools.partial(
        augment.random_erase,
        options=options_of(
          erase_probability=0.5, erase_area=(0.1, 0.3), erase_aspect=(0.5, 2.0)
        ),
        fill=FILL,
      )
    )(jnp.asarray(video), jax.random.key(0))
  )
  holes = (got == np.array(FILL)).all(-1)
  assert (holes[:, 0] == holes[:, 1]).all()
  share = holes[:, 0].mean((1, 2))
  assert 16 < (share > 0).sum() < 48
  # Sides are rounded to pixels.
  assert 0.07 < share[share > 0].min() and share.max() < 0.34
  for hole in holes[share > 0, 0]:
    rows, columns = hole.any(1), hole.any(0)
    assert hole.sum() == rows.sum() * columns.sum()
  assert (got[~holes] == 200).all()


@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_labels_are_mixed_as_the_pixels_are(kind):
  """Clips of one value each: the mean pixel tells the share of the other."""
  values = np.array([0.0, 100.0, 200.0, 50.0], np.float32)
  video = np.broadcast_to(values[:, None, None, None, None], (4, 2, 8, 6, 3))
  alphas = {
    f'{name}_alpha': float(name == kind) for name in ('mixup', 'cutmix')
  }
  run = jax.jit(functools.partial(augment.mix, options=options_of(**alphas)))
  got = run(jnp.asarray(video), jnp.eye(4), jax.random.key(1))
  mixed, label = np.asarray(got['video']), np.asarray(got['label'])
  np.testing.assert_allclose(label.sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(
    mixed.mean((1, 2, 3, 4)), label @ values, atol=1e-3
  )
  for i in range(4):
    assert set(np.flatnonzero(label[i])) <= {i, i - 1 if i else 3}
  if kind == 'mixup':
    assert all(len(np.unique(clip)) == 1 for clip in mixed)
  else:
    assert set(np.unique(mixed)) <= set(values)
  assert (label.max(1) < 1).sum() >= 3


def test_several_labels_keep_their_number_when_mixed():
  label = np.zeros((2, NUM_CLASSES), np.float32)
  label[0, :3] = 1  # The other one has none.
  run = jax.jit(augmentation.augment(make_config(mixup_alpha=1.0)))
  got = run(
    {'video': make_batch(batch=2)['video'], 'label': label}, jax.random.key(0)
  )
  share = np.asarray(got['label'])
  np.testing.assert_allclose(share[0, :3], share[0, 0])
  assert 0 < share[0, 0] < 1 and not share[:, 3:].any()


# Strengths that change from step to step.


def varied(**greatest):
  """A jitted augmentation that takes strengths, and a batch."""
  run = augmentation.augment(make_config(**greatest))
  return jax.jit(run), make_batch(batch=8)


@pytest.mark.parametrize(
  'name',
  [*(n for n in EVERYTHING if 'rand' not in n), 'randaugment_magnitude'],
)
def test_a_given_strength_does_what_the_setting_does(name):
  others = {'randaugment_ops': 1} if name == 'randaugment_magnitude' else {}
  value = EVERYTHING.get(name, 5.0)
  run, batch = varied(**{name: value}, **others)
  want = run(batch, jax.random.key(1))
  got = run(batch, jax.random.key(1), {name: jnp.float32(value)})
  for key in ('video', 'label'):
    np.testing.assert_allclose(
      np.asarray(got[key], np.float32),
      np.asarray(want[key], np.float32),
      # A constant is rounded once more, or once less; pixels to integers.
      atol=1 if key == 'video' else 1e-6,
    )


@pytest.mark.parametrize('name', [n for n in EVERYTHING if 'rand' not in n])
def test_a_strength_of_zero_changes_nothing(name):
  run, batch = varied(**{name: EVERYTHING[name]})
  got = run(batch, jax.random.key(1), {name: jnp.float32(0)})
  np.testing.assert_array_equal(got['video'], batch['video'])
  label = np.asarray(got['label'])
  if label.ndim == 2:
    label = label.argmax(1)
    np.testing.assert_array_equal(np.asarray(got['label']).max(1), 1)
  np.testing.assert_array_equal(label, batch['label'])


@pytest.mark.parametrize('off,on', [('mixup', 'cutmix'), ('cutmix', 'mixup')])
def test_one_of_two_mixings_acts_alone_where_the_other_is_zero(off, on):
  run, batch = varied(mixup_alpha=1.0, cutmix_alpha=1.0)
  strengths = {
    f'{off}_alpha': jnp.float32(0),
    f'{on}_alpha': jnp.float32(1),
  }
  got = run(batch, jax.random.key(2), strengths)
  # All clips are mixed by it, not half of them.
  assert (np.asarray(got['label']).max(1) < 1).mean() > 0.8


def test_one_program_serves_all_strengths():
  run, batch = varied(mixup_alpha=1.0)
  for value in (0.0, 0.3, 1.0):
    run(batch, jax.random.key(0), {'mixup_alpha': jnp.float32(value)})
  assert run._cache_size() == 1


@pytest.mark.parametrize('field', ['mixup_alpha', 'cutmix_alpha'])
def test_no_clip_is_mixed_with_another_one_of_its_video(field):
  config = make_config(**{field: 1.0})
  config.data.samples_per_video = 2
  batch = make_batch(batch=8)
  batch['label'] = np.repeat(np.arange(4, dtype=np.int32), 2)
  run = jax.jit(augmentation.augment(config))
  label = np.asarray(run(batch, jax.random.key(3))['label'])
  # Two labels in each clip: its own and that of the video before.
  assert (label[np.arange(8), batch['label']] < 1).all()
  before = np.roll(batch['label'], 2)
  np.testing.assert_allclose(
    label[np.arange(8), batch['label']] + label[np.arange(8), before], 1
  )
