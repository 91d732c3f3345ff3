"""RandAugment in timm's form against Pillow, which its reference calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mgjax.setup import augmentation
from mgjax.step import increasing_operations
from tests.step.test_augment import make_batch, make_config

FILL = (128, 128, 128)
NAMES = increasing_operations.OPERATIONS
HEIGHT, WIDTH = 24, 34


def make_video():
  """Two clips of frames that differ; smooth, so that resampling is exact."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(20, 230, (6, 4, 5, 3), np.uint8)
  frames = [
    np.asarray(
      Image.fromarray(c).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    )
    for c in coarse
  ]
  return np.stack(frames).reshape(2, 3, HEIGHT, WIDTH, 3)


VIDEO = make_video()
APPLY = jax.jit(increasing_operations.apply_operation)


def operate(name, magnitude, sign, video=VIDEO):
  count = len(video)
  return np.asarray(
    APPLY(
      jnp.asarray(video, jnp.float32),
      jnp.full(count, NAMES.index(name) if name else -1),
      jnp.full(count, magnitude, jnp.float32),
      jnp.full(count, sign, jnp.float32),
    )
  )


def affine(picture, *matrix):
  return picture.transform(
    picture.size,
    Image.Transform.AFFINE,
    matrix,
    resample=Image.Resampling.BILINEAR,
    fillcolor=FILL,
  )


def solarize_add(picture, added):
  levels = [min(255, i + added) if i < 128 else i for i in range(256)]
  return picture.point(levels * 3)


# From a picture, the level (magnitude / 10) and the sign, by the formulas of
# timm/data/auto_augment.py for increasing magnitudes.
REFERENCES = {
  'auto_contrast': lambda p, level, sign: ImageOps.autocontrast(p),
  'equalize': lambda p, level, sign: ImageOps.equalize(p),
  'invert': lambda p, level, sign: ImageOps.invert(p),
  'rotate': lambda p, level, sign: p.rotate(
    sign * level * 30, resample=Image.Resampling.BILINEAR, fillcolor=FILL
  ),
  'posterize': lambda p, level, sign: ImageOps.posterize(p, 4 - int(level * 4)),
  'solarize': lambda p, level, sign: ImageOps.solarize(
    p, 256 - int(level * 256)
  ),
  'solarize_add': lambda p, level, sign: solarize_add(p, int(level * 110)),
  'colour': lambda p, level, sign: ImageEnhance.Color(p).enhance(
    1 + sign * 0.9 * level
  ),
  'contrast': lambda p, level, sign: ImageEnhance.Contrast(p).enhance(
    1 + sign * 0.9 * level
  ),
  'brightness': lambda p, level, sign: ImageEnhance.Brightness(p).enhance(
    1 + sign * 0.9 * level
  ),
  'sharpness': lambda p, level, sign: ImageEnhance.Sharpness(p).enhance(
    1 + sign * 0.9 * level
  ),
  'shear_x': lambda p, level, sign: affine(
    p, 1, sign * 0.3 * level, 0, 0, 1, 0
  ),
  'shear_y': lambda p, level, sign: affine(
    p, 1, 0, 0, sign * 0.3 * level, 1, 0
  ),
  'translate_x': lambda p, level, sign: affine(
    p, 1, 0, sign * 0.45 * level * p.size[0], 0, 1, 0
  ),
  'translate_y': lambda p, level, sign: affine(
    p, 1, 0, 0, 0, 1, sign * 0.45 * level * p.size[1]
  ),
}


def test_the_operations_are_those_of_the_reference():
  assert set(REFERENCES) == set(NAMES) and len(NAMES) == 15


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('magnitude,sign', [(7, -1), (9.3, 1)])
def test_an_operation_is_that_of_pillow(name, magnitude, sign):
  got = operate(name, magnitude, sign)
  want = np.stack(
    [
      np.asarray(REFERENCES[name](Image.fromarray(f), magnitude / 10, sign))
      for f in VIDEO.reshape(-1, HEIGHT, WIDTH, 3)
    ]
  ).reshape(VIDEO.shape)
  assert (got == np.round(got)).all() and got.min() >= 0 and got.max() <= 255
  error = np.abs(got - want)
  # Places at the very edge of the picture are on one side of it or the other.
  geometric = name in ('rotate', 'shear_x', 'shear_y') or 'translate' in name
  assert (error > 1).mean() < (0.01 if geometric else 1e-9)
  assert (error > 0).mean() < (0.1 if geometric else 0.02)
  # It has changed something.
  assert (want != VIDEO).mean() > 0.1


def test_no_operation_leaves_everything():
  np.testing.assert_array_equal(operate('', 7, 1), VIDEO)


def test_equalize_knows_pictures_of_one_colour_and_of_few_pixels():
  rng = np.random.default_rng(1)
  flat = np.full((1, 1, HEIGHT, WIDTH, 3), 77, np.uint8)
  # 8 x 9 pixels: fewer than levels, so that the table is the plain one.
  for video in (flat, rng.integers(0, 256, (1, 1, 8, 9, 3), np.uint8)):
    want = np.asarray(ImageOps.equalize(Image.fromarray(video[0, 0])))
    got = np.asarray(
      jax.jit(increasing_operations.equalize)(jnp.asarray(video, jnp.float32))
    )
    np.testing.assert_array_equal(got[0, 0], want)


RAND_M7_N4 = {
  'randaugment_ops': 4,
  'randaugment_magnitude': 7.0,
  'randaugment_policy': 'timm',
  'randaugment_probability': 0.5,
  'randaugment_magnitude_std': 0.5,
}


def on_device(batch):
  return jax.tree.map(jnp.asarray, make_batch(batch=batch))


def test_clips_draw_operations_strengths_and_whether_they_are_applied(
  monkeypatch,
):
  """By a key; half of them are not, the others are of magnitude 7 +- 0.5."""
  drawn = []

  def note(video, op, magnitude, sign):
    drawn.append((op, magnitude, sign))
    return video

  monkeypatch.setattr(increasing_operations, 'apply_operation', note)
  run = augmentation.augment(make_config(**RAND_M7_N4))
  run(on_device(600), jax.random.key(0))
  assert len(drawn) == 4
  op, magnitude, sign = (np.array(x).ravel() for x in zip(*drawn, strict=True))
  assert 0.45 < (op == -1).mean() < 0.55
  counts = np.bincount(op[op >= 0], minlength=15)
  assert len(counts) == 15 and (np.abs(counts - counts.mean()) < 40).all()
  assert abs(magnitude.mean() - 7) < 0.05 and abs(magnitude.std() - 0.5) < 0.03
  assert 0.45 < (sign > 0).mean() < 0.55
  # One operation does not tell another.
  assert abs(np.corrcoef(drawn[0][1], drawn[1][1])[0, 1]) < 0.15


def test_strengths_are_cut_off_at_0_and_10(monkeypatch):
  drawn = []
  monkeypatch.setattr(
    increasing_operations,
    'apply_operation',
    lambda video, op, magnitude, sign: drawn.append(magnitude) or video,
  )
  options = RAND_M7_N4 | {'randaugment_magnitude_std': 20.0}
  augmentation.augment(make_config(**options))(on_device(50), jax.random.key(0))
  assert np.min(drawn) == 0 and np.max(drawn) == 10


def test_a_batch_is_changed_by_timms_policy():
  batch = make_batch(batch=6, height=16, width=16)
  run = jax.jit(augmentation.augment(make_config(**RAND_M7_N4)))
  after = np.asarray(run(batch, jax.random.key(1))['video'])
  assert after.dtype == np.uint8
  # What is drawn is one for all frames, which are alike here.
  np.testing.assert_array_equal(after[:, 0], after[:, 1])
  assert (after != batch['video']).any((1, 2, 3, 4)).sum() >= 4
