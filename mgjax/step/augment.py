"""Changes training clips on the device: RandAugment, colour, erasing, mixing.

A function from a batch to a batch, inside the train step. What is drawn is one
number per clip, so all frames of a clip change alike; shapes stay, so any grid
of a schedule has one program as before. Pixels are uint8 before and after.
Everything acts clip by clip (mixing: on a clip and its neighbour), so batches
that are cut over devices stay there.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Key

# Weights of red, green and blue in a grey picture (ITU-R BT.601).
_GREY = (0.299, 0.587, 0.114)

# RandAugment's operations, in the order of their numbers.
OPERATIONS = (
  'identity',
  'auto_contrast',
  'brightness',
  'colour',
  'contrast',
  'sharpness',
  'posterize',
  'solarize',
  'rotate',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
)

# Greatest strength (magnitude 10): degrees, slope, share of the side, distance
# of a factor from 1.
_ROTATE, _SHEAR, _TRANSLATE, _FACTOR = 30.0, 0.3, 150 / 331, 0.9


def make_augment(config: ml_collections.ConfigDict) -> Callable | None:
  """Returns augment(batch, rng) -> batch; None where all of it is off.

  The batch has 'video' uint8 [B, T, H, W, 3] and 'label', int32 [B] or float32
  [B, K]; its other entries stay. Where clips are mixed the new label is float32
  [B, K], weights of the classes; they add up to what they did before mixing (1
  for one label).

  Args:
    config: Its `augment` says what is on; data.mean is the colour of holes.
  """
  options = config.augment
  jitter = {
    name: options[name] for name in ('brightness', 'contrast', 'saturation')
  }
  alphas = options.mixup_alpha, options.cutmix_alpha
  jitters = any(jitter.values()) or options.hue
  if not (
    options.randaugment_ops
    or jitters
    or options.erase_probability
    or any(alphas)
  ):
    return None
  fill = tuple(255 * value for value in config.data.mean)

  def augment(batch: dict, rng: jax.Array) -> dict:
    keys = jax.random.split(rng, 4)
    video = batch['video'].astype(jnp.float32)
    if options.randaugment_ops:
      video = rand_augment(
        video,
        keys[0],
        num_ops=options.randaugment_ops,
        magnitude=options.randaugment_magnitude,
        fill=fill,
      )
    if jitters:
      video = colour_jitter(video, keys[1], hue=options.hue, **jitter)
    if options.erase_probability:
      video = random_erase(
        video,
        keys[2],
        probability=options.erase_probability,
        area=options.erase_area,
        aspect=options.erase_aspect,
        fill=fill,
      )
    batch = {**batch, 'video': video}
    if any(alphas):
      batch |= mix(
        video,
        _class_weights(batch['label'], config.model.num_classes),
        keys[3],
        mixup_alpha=alphas[0],
        cutmix_alpha=alphas[1],
      )
    pixels = jnp.round(jnp.clip(batch['video'], 0, 255)).astype(jnp.uint8)
    return {**batch, 'video': pixels}

  return augment


def _class_weights(label: jax.Array, num_classes: int) -> jax.Array:
  if label.ndim == 1:
    return jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
  return label


def rand_augment(
  video: Float[Array, 'B T H W 3'],
  rng: Key[Array, ''],
  *,
  num_ops: int,
  magnitude: float,
  fill: tuple[float, ...],
) -> Float[Array, 'B T H W 3']:
  """Applies operations drawn at random, one after the other, to each clip.

  Args:
    video: RGB, 0..255.
    rng: Key.
    num_ops: Operations per clip, drawn independently.
    magnitude: Strength of all of them, in [0, 10]; the sign of those that
      have one is drawn.
    fill: RGB of what lies outside the picture.

  Source: Cubuk et al. 2020 (arXiv:1909.13719); ranges of torchvision 0.24,
    transforms/autoaugment.py.
  Differs: Bilinear, not nearest pixels; no equalize (a histogram per clip is a
    scatter over all pixels, slow on accelerators).
  """
  for key in jax.random.split(rng, num_ops):
    op_key, sign_key = jax.random.split(key)
    shape = (video.shape[0],)
    op = jax.random.randint(op_key, shape, 0, len(OPERATIONS))
    sign = jnp.where(jax.random.bernoulli(sign_key, shape=shape), 1.0, -1.0)
    video = apply_operation(video, op, sign * magnitude / 10, fill=fill)
  return video


def apply_operation(
  video: Float[Array, 'B T H W 3'],
  op: jax.Array,
  strength: jax.Array,
  *,
  fill: tuple[float, ...],
) -> Float[Array, 'B T H W 3']:
  """Applies one of `OPERATIONS` to each clip.

  Args:
    video: RGB, 0..255.
    op: int [B], places in `OPERATIONS`.
    strength: float [B], in [-1, 1]; operations without a sign take its
      absolute value.
    fill: RGB of what lies outside the picture.

  Returns:
    RGB, 0..255.
  """
  chosen = {name: op == i for i, name in enumerate(OPERATIONS)}
  amount = jnp.abs(strength)
  # A clip whose operation is another one gets a factor of 1, an angle of 0 …
  value = lambda name, scale: jnp.where(chosen[name], scale * strength, 0.0)
  factor = lambda name: 1 + value(name, _FACTOR)
  video = adjust_brightness(video, factor('brightness'))
  video = adjust_saturation(video, factor('colour'))
  video = adjust_contrast(video, factor('contrast'))
  video = _sharpen(video, factor('sharpness'))
  # Selected, not blended: these have no strength that changes nothing.
  for name, changed in (
    ('auto_contrast', _auto_contrast(video)),
    ('posterize', _posterize(video, 8 - jnp.round(4 * amount))),
    ('solarize', _solarize(video, 255 * (1 - amount))),
  ):
    video = jnp.where(_per_clip(chosen[name]), changed, video)
  height, width = video.shape[2:4]
  return warp(
    video,
    angle=value('rotate', math.radians(_ROTATE)),
    shear_x=value('shear_x', _SHEAR),
    shear_y=value('shear_y', _SHEAR),
    shift_x=value('translate_x', _TRANSLATE * width),
    shift_y=value('translate_y', _TRANSLATE * height),
    fill=fill,
  )


def colour_jitter(
  video: Float[Array, 'B T H W 3'],
  rng: Key[Array, ''],
  *,
  brightness: float,
  contrast: float,
  saturation: float,
  hue: float,
) -> Float[Array, 'B T H W 3']:
  """Changes brightness, contrast, saturation and hue of each clip, in turn.

  Args:
    video: RGB, 0..255.
    rng: Key.
    brightness: The factor is drawn from [max(0, 1 - brightness),
      1 + brightness]; the same for the next two.
    contrast: See brightness.
    saturation: See brightness.
    hue: The angle is drawn from [-hue, hue] full turns.

  Source: torchvision 0.24, ColorJitter.
  Differs: The order is not drawn. Hue turns in YIQ, a linear map, not in HSV.
  """
  keys = jax.random.split(rng, 4)
  batch = (video.shape[0],)
  for key, width, adjust in (
    (keys[0], brightness, adjust_brightness),
    (keys[1], contrast, adjust_contrast),
    (keys[2], saturation, adjust_saturation),
  ):
    if width:
      factor = jax.random.uniform(
        key, batch, minval=max(0.0, 1 - width), maxval=1 + width
      )
      video = adjust(video, factor)
  if hue:
    turns = jax.random.uniform(keys[3], batch, minval=-hue, maxval=hue)
    video = turn_hue(video, turns)
  return video


def adjust_brightness(
  video: Float[Array, 'B T H W 3'], factor: Float[Array, ' B']
) -> Float[Array, 'B T H W 3']:
  """Multiplies RGB, 0..255, by a factor per clip."""
  return _clip(video * _per_clip(factor))


def adjust_contrast(
  video: Float[Array, 'B T H W 3'], factor: Float[Array, ' B']
) -> Float[Array, 'B T H W 3']:
  """Multiplies the distance of RGB, 0..255, from the clip's mean grey."""
  mean = _grey(video).mean((1, 2, 3, 4), keepdims=True)
  return _clip(mean + (video - mean) * _per_clip(factor))


def adjust_saturation(
  video: Float[Array, 'B T H W 3'], factor: Float[Array, ' B']
) -> Float[Array, 'B T H W 3']:
  """Multiplies the distance of RGB, 0..255, from the pixel's grey."""
  grey = _grey(video)
  return _clip(grey + (video - grey) * _per_clip(factor))


def turn_hue(
  video: Float[Array, 'B T H W 3'], turns: Float[Array, ' B']
) -> Float[Array, 'B T H W 3']:
  """Turns the hue of RGB, 0..255, by a number of full turns per clip."""
  to_yiq = jnp.array(
    [_GREY, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)]
  )
  angle = 2 * jnp.pi * turns
  zero, one = jnp.zeros_like(angle), jnp.ones_like(angle)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turn = jnp.array([[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]])
  matrix = jnp.einsum(
    'ij,jkb,kl->bil',
    jnp.linalg.inv(to_yiq),
    turn,
    to_yiq,
    precision='highest',
  )
  return _clip(jnp.einsum('bthwc,bdc->bthwd', video, matrix, precision='high'))


def warp(
  video: Float[Array, 'B T H W 3'],
  *,
  angle: Float[Array, ' B'],
  shear_x: Float[Array, ' B'],
  shear_y: Float[Array, ' B'],
  shift_x: Float[Array, ' B'],
  shift_y: Float[Array, ' B'],
  fill: tuple[float, ...],
) -> Float[Array, 'B T H W 3']:
  """Rotates, shears and shifts each clip about its centre, bilinearly.

  The pixel at (x, y) from the centre comes from R S (x, y) + shift, with the
  rotation R by `angle` and the shear S = [[1, shear_x], [shear_y, 1]].

  Args:
    video: RGB, 0..255.
    angle: Radians.
    shear_x: Columns per row.
    shear_y: Rows per column.
    shift_x: Columns.
    shift_y: Rows.
    fill: RGB of what lies outside the picture.
  """
  height, width = video.shape[2:4]
  y, x = jnp.meshgrid(
    jnp.arange(height) - (height - 1) / 2,
    jnp.arange(width) - (width - 1) / 2,
    indexing='ij',
  )
  column = lambda v: v[:, None, None]
  sheared_x = x + column(shear_x) * y
  sheared_y = y + column(shear_y) * x
  cos, sin = column(jnp.cos(angle)), column(jnp.sin(angle))
  from_x = cos * sheared_x - sin * sheared_y + column(shift_x)
  from_y = sin * sheared_x + cos * sheared_y + column(shift_y)
  return _sample(
    video, from_y + (height - 1) / 2, from_x + (width - 1) / 2, fill
  )


def _sample(video, y, x, fill):
  """Reads [B, T, H, W, 3] at rows y and columns x, [B, H, W], bilinearly."""
  height, width = video.shape[2:4]
  y0, x0 = jnp.floor(y), jnp.floor(x)
  background = jnp.array(fill, video.dtype)
  # Relative to the fill, what lies outside is 0.
  flat = (video - background).reshape(*video.shape[:2], height * width, 3)
  result = 0.0
  for row, weight_y in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
    for column, weight_x in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
      inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
      place = jnp.clip(row, 0, height - 1) * width
      place += jnp.clip(column, 0, width - 1)
      # The same places in all frames of a clip.
      taken = jax.vmap(lambda v, i: v[:, i])(flat, place.astype(jnp.int32))
      weight = jnp.where(inside, weight_y * weight_x, 0.0)
      result += weight[:, None, :, :, None] * taken
  return result + background


def random_erase(
  video: Float[Array, 'B T H W 3'],
  rng: Key[Array, ''],
  *,
  probability: float,
  area: tuple[float, float],
  aspect: tuple[float, float],
  fill: tuple[float, ...],
) -> Float[Array, 'B T H W 3']:
  """Fills a random rectangle of some clips with one colour.

  Args:
    video: RGB, 0..255.
    rng: Key.
    probability: Of a clip to have such a rectangle.
    area: Range of its share of the picture.
    aspect: Range of its height / width, drawn evenly on a log scale.
    fill: Its RGB.

  Source: Zhong et al. 2020 (arXiv:1708.04896), algorithm 1.
  Differs: One colour, not noise; sides are cut to the picture's where the paper
    draws again.
  """
  keys = jax.random.split(rng, 4)
  batch = (video.shape[0],)
  height, width = video.shape[2:4]
  share = jax.random.uniform(keys[0], batch, minval=area[0], maxval=area[1])
  ratio = jnp.exp(
    jax.random.uniform(
      keys[1], batch, minval=math.log(aspect[0]), maxval=math.log(aspect[1])
    )
  )
  pixels = share * height * width
  sides = jnp.stack([jnp.sqrt(pixels * ratio), jnp.sqrt(pixels / ratio)])
  size = jnp.array([[height], [width]])
  sides = jnp.minimum(jnp.round(sides), size)
  start = jnp.floor(
    jax.random.uniform(keys[2], (2, *batch)) * (size - sides + 1)
  )
  inside = _rectangle(start, sides, height, width)
  inside &= jax.random.bernoulli(keys[3], probability, batch)[:, None, None]
  return jnp.where(inside[:, None, :, :, None], jnp.array(fill), video)


def mix(
  video: Float[Array, 'B T H W 3'],
  label: Float[Array, 'B K'],
  rng: Key[Array, ''],
  *,
  mixup_alpha: float,
  cutmix_alpha: float,
) -> dict:
  """Mixes each clip, and its label, with the one before it in the batch.

  Mixup adds the two with weights; CutMix takes a rectangle, the same in all
  frames, from the other one. The labels' weights are the clips' shares of the
  pixels, exactly.

  Args:
    video: RGB, 0..255.
    label: Weights of the classes.
    rng: Key.
    mixup_alpha: The own share of a clip follows Beta(alpha, alpha); 0: off.
    cutmix_alpha: The same for the pixels outside the rectangle. Where both are
      on, half of the clips are mixed by each.

  Returns:
    {'video', 'label'}.

  Source: Zhang et al. 2018 (arXiv:1710.09412); Yun et al. 2019
    (arXiv:1905.04899).
  """
  keys = jax.random.split(rng, 4)
  batch, _, height, width, _ = video.shape
  beta = lambda key, a: jax.random.beta(key, a, a, (batch,))
  own = None
  if mixup_alpha:
    own = jnp.broadcast_to(
      beta(keys[0], mixup_alpha)[:, None, None], (batch, height, width)
    )
  if cutmix_alpha:
    cut = jnp.sqrt(1 - beta(keys[1], cutmix_alpha))
    size = jnp.array([[height], [width]])
    sides = jnp.round(cut * size)
    # The centre lies anywhere; what sticks out of the picture is cut off.
    centre = jnp.floor(jax.random.uniform(keys[2], (2, batch)) * size)
    start = centre - jnp.floor(sides / 2)
    outside = ~_rectangle(start, sides, height, width)
    own_cutmix = outside.astype(video.dtype)
    if own is None:
      own = own_cutmix
    else:
      which = jax.random.bernoulli(keys[3], shape=(batch, 1, 1))
      own = jnp.where(which, own, own_cutmix)
  # The neighbour, not a random clip: clips are shuffled already, and only one
  # clip moves between devices.
  share = own.mean((1, 2))[:, None]
  own = own[:, None, :, :, None]
  return {
    'video': own * video + (1 - own) * jnp.roll(video, 1, 0),
    'label': share * label + (1 - share) * jnp.roll(label, 1, 0),
  }


def _rectangle(start, sides, height: int, width: int) -> jax.Array:
  """Bool [B, H, W], true inside rectangles; start and sides [2, B]: y, x."""
  rows, columns = jnp.arange(height), jnp.arange(width)
  end = start + sides
  inside_y = (rows >= start[0, :, None]) & (rows < end[0, :, None])
  inside_x = (columns >= start[1, :, None]) & (columns < end[1, :, None])
  return inside_y[:, :, None] & inside_x[:, None, :]


def _sharpen(video, factor):
  """Multiplies the distance from a smoothed picture, but on its border."""
  middle = video[:, :, 1:-1, 1:-1]
  height, width = video.shape[2:4]
  total = 4 * middle
  for dy in range(3):
    for dx in range(3):
      total += video[:, :, dy : height - 2 + dy, dx : width - 2 + dx]
  # 1 around 5 in the middle, over 13, as in the Python Imaging Library.
  smooth = video.at[:, :, 1:-1, 1:-1].set(total / 13)
  return _clip(smooth + (video - smooth) * _per_clip(factor))


def _auto_contrast(video):
  """Stretches each channel of a clip to 0..255."""
  low = video.min((1, 2, 3), keepdims=True)
  high = video.max((1, 2, 3), keepdims=True)
  scale = 255 / jnp.where(high > low, high - low, 255.0)
  return jnp.where(high > low, (video - low) * scale, video)


def _posterize(video, bits):
  """Keeps the first `bits` of 8, [B]."""
  step = _per_clip(2 ** (8 - bits))
  return jnp.floor(video / step) * step


def _solarize(video, threshold):
  """Inverts what is not below a threshold, [B]."""
  return jnp.where(video >= _per_clip(threshold), 255 - video, video)


def _grey(video):
  """Grey of each pixel, [B, T, H, W, 1]."""
  return (video * jnp.array(_GREY, video.dtype)).sum(-1, keepdims=True)


def _per_clip(value):
  return value[:, None, None, None, None]


def _clip(video):
  return jnp.clip(video, 0, 255)
