"""Changes training clips on the device: RandAugment, colour, erasing, mixing.

A function from a batch to a batch, inside the train step. What is drawn is one
number per clip, so all frames of a clip change alike; shapes stay, so any grid
of a schedule has one program as before. Pixels are uint8 before and after.
Everything acts clip by clip (mixing: on a clip and its neighbour), so batches
that are cut over devices stay there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mgjax.step import increasing_operations
from mgjax.step import pixel_operations as pixels
from mgjax.step.pixel_operations import Video

# RandAugment's operations, in the order of their numbers.
OPERATIONS = tuple(
  'identity auto_contrast brightness colour contrast sharpness posterize '
  'solarize rotate shear_x shear_y translate_x translate_y'.split()
)

# Greatest strength (magnitude 10): degrees, slope, share of the side, distance
# of a factor from 1.
_ROTATE, _SHEAR, _TRANSLATE, _FACTOR = 30.0, 0.3, 150 / 331, 0.9


# A number, or an argument of the program: see `make_augment`.
Strength = float | Float[Array, '']


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What changes in training clips beyond the crop and the flip; 0: nothing.

  Attributes:
    randaugment_ops: Operations per clip, 0 or more; see `rand_augment`.
    randaugment_magnitude: Their strength, in [0, 10].
    randaugment_policy: 'torchvision': the operations of this module; 'timm':
      those of increasing_operations.py.
    randaugment_probability: Of an operation that is drawn to be applied.
    randaugment_magnitude_std: Standard deviation of the strength, drawn for
      each clip and operation, and cut off at 0 and 10.
    brightness: See `colour_jitter`; 0 or more.
    contrast: See brightness.
    saturation: See brightness.
    hue: See `colour_jitter`; in [0, 0.5] full turns.
    erase_probability: Share of the clips with an erased rectangle, in [0, 1];
      see `random_erase`.
    erase_area: Least and greatest share of the picture that is erased.
    erase_aspect: Least and greatest height / width of the rectangle.
    mixup_alpha: See `mix`; 0: off.
    cutmix_alpha: See `mix`; 0: off.
  """

  randaugment_ops: int
  randaugment_magnitude: Strength
  randaugment_policy: str
  randaugment_probability: float
  randaugment_magnitude_std: float
  brightness: Strength
  contrast: Strength
  saturation: Strength
  hue: Strength
  erase_probability: Strength
  erase_area: tuple[float, float]
  erase_aspect: tuple[float, float]
  mixup_alpha: Strength
  cutmix_alpha: Strength


def make_augment(
  options: Augmentation,
  *,
  fill: tuple[float, float, float],
  num_classes: int,
  clips_per_video: int = 1,
) -> Callable[..., dict] | None:
  """Returns augment(batch, rng, strengths) -> batch; None where it is all off.

  The batch has 'video' uint8 [B, T, H, W, 3] and 'label', int32 [B] or float32
  [B, K]; its other entries stay. Where clips are mixed the new label is float32
  [B, K], weights of the classes; they add up to what they did before mixing (1
  for one label). `strengths` has float32 [] for options that differ from step
  to step; they are arguments, so that one program serves all of them.

  Args:
    options: What is on: of those in `strengths`, the greatest values.
    fill: RGB, 0..255, of holes and of what lies outside the picture.
    num_classes: K.
    clips_per_video: Clips in a row that show one video; mixing takes no
      neighbour of the same.
  """
  # None, not the identity: a program without augmentation is to be the same
  # program, bit for bit, as before there was any.
  o = options
  if not any(
    (o.randaugment_ops, o.brightness, o.contrast, o.saturation, o.hue)
    + (o.erase_probability, o.mixup_alpha, o.cutmix_alpha)
  ):
    return None
  return functools.partial(
    _augment, options, fill, num_classes, clips_per_video
  )


def _augment(
  options: Augmentation,
  fill: tuple[float, float, float],
  num_classes: int,
  clips_per_video: int,
  batch: dict,
  rng: jax.Array,
  strengths: Mapping[str, jax.Array] | None = None,
) -> dict:
  """See `make_augment`."""
  # What is off in all steps has no code here, whatever is given for it.
  given = {k: v for k, v in (strengths or {}).items() if getattr(options, k)}
  options = dataclasses.replace(options, **given)
  # Always four, so that turning one thing on leaves the others' numbers.
  keys = jax.random.split(rng, 4)
  video = batch['video'].astype(jnp.float32)
  if options.randaugment_ops:
    video = rand_augment(video, keys[0], options, fill)
  video = colour_jitter(video, keys[1], options)
  if _is_on(options.erase_probability):
    video = random_erase(video, keys[2], options, fill)
  batch = {**batch, 'video': video}
  if _is_on(options.mixup_alpha) or _is_on(options.cutmix_alpha):
    label = batch['label']
    if label.ndim == 1:
      label = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
    batch |= mix(video, label, keys[3], options, distance=clips_per_video)
  rounded = jnp.round(jnp.clip(batch['video'], 0, 255)).astype(jnp.uint8)
  return {**batch, 'video': rounded}


def _is_on(strength: Strength) -> bool:
  """Whether a strength is not 0, or may be another number in some step."""
  return _is_given(strength) or strength != 0


def _is_given(strength: Strength) -> bool:
  """Whether a strength is an argument of the program."""
  return isinstance(strength, jax.Array)


def rand_augment(
  video: Video,
  rng: Key[Array, ''],
  options: Augmentation,
  fill: tuple[float, ...],
) -> Video:
  """Applies operations drawn at random, one after the other, to each clip.

  Args:
    video: RGB, 0..255.
    rng: Key.
    options: randaugment_ops operations of randaugment_policy are drawn for each
      clip, one independently of the other; each is applied with
      randaugment_probability. randaugment_magnitude is the strength of all, or
      its mean; the sign of those that have one is drawn.
    fill: RGB of what lies outside the picture, with 'torchvision'.

  Source: Cubuk et al. 2020 (arXiv:1909.13719); 'torchvision': ranges of
    torchvision 0.24, transforms/autoaugment.py; 'timm': see
    increasing_operations.py.
  Differs: 'torchvision': bilinear, not nearest pixels; no equalize.
  """
  timm = options.randaugment_policy == 'timm'
  names = increasing_operations.OPERATIONS if timm else OPERATIONS
  for key in jax.random.split(rng, options.randaugment_ops):
    op_key, sign_key = jax.random.split(key)
    shape = (video.shape[0],)
    op = jax.random.randint(op_key, shape, 0, len(names))
    sign = jnp.where(jax.random.bernoulli(sign_key, shape=shape), 1.0, -1.0)
    magnitude = options.randaugment_magnitude
    # Keys of their own, made where they are needed: the draws of runs without
    # stay.
    if options.randaugment_magnitude_std:
      noise = jax.random.normal(jax.random.fold_in(key, 1), shape)
      magnitude += options.randaugment_magnitude_std * noise
      magnitude = jnp.clip(magnitude, 0, 10)
    if options.randaugment_probability < 1:
      applied = jax.random.bernoulli(
        jax.random.fold_in(key, 2), options.randaugment_probability, shape
      )
      op = jnp.where(applied, op, -1)
    if timm:
      magnitude = jnp.broadcast_to(magnitude, shape)
      video = increasing_operations.apply_operation(video, op, magnitude, sign)
    else:
      strength = sign * magnitude / 10
      video = apply_operation(video, op, strength, fill=fill)
  return video


def apply_operation(
  video: Video,
  op: jax.Array,
  strength: jax.Array,
  *,
  fill: tuple[float, ...],
) -> Video:
  """Applies one of `OPERATIONS` to each clip.

  Args:
    video: RGB, 0..255.
    op: int [B], places in `OPERATIONS`; another number: nothing is done.
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
  video = pixels.adjust_brightness(video, factor('brightness'))
  video = pixels.adjust_saturation(video, factor('colour'))
  video = pixels.adjust_contrast(video, factor('contrast'))
  video = pixels.sharpen(video, factor('sharpness'))
  # Selected, not blended: these have no strength that changes nothing.
  for name, changed in (
    ('auto_contrast', pixels.auto_contrast(video)),
    ('posterize', pixels.posterize(video, 8 - jnp.round(4 * amount))),
    ('solarize', pixels.solarize(video, 255 * (1 - amount))),
  ):
    video = jnp.where(pixels.per_clip(chosen[name]), changed, video)
  height, width = video.shape[2:4]
  return pixels.warp(
    video,
    angle=value('rotate', math.radians(_ROTATE)),
    shear_x=value('shear_x', _SHEAR),
    shear_y=value('shear_y', _SHEAR),
    shift_x=value('translate_x', _TRANSLATE * width),
    shift_y=value('translate_y', _TRANSLATE * height),
    fill=fill,
  )


def colour_jitter(
  video: Video, rng: Key[Array, ''], options: Augmentation
) -> Video:
  """Changes brightness, contrast, saturation and hue of each clip, in turn.

  Args:
    video: RGB, 0..255.
    rng: Key.
    options: Has brightness, contrast, saturation and hue. The factor of the
      brightness is drawn from [max(0, 1 - brightness), 1 + brightness]; the
      factors of contrast and saturation in the same way; the angle of the hue
      from [-hue, hue] full turns. An option of 0 changes nothing.

  Source: torchvision 0.24, ColorJitter.
  Differs: The order is not drawn. Hue turns in YIQ, a linear map, not in HSV.
  """
  keys = jax.random.split(rng, 4)
  batch = (video.shape[0],)
  for key, width, adjust in (
    (keys[0], options.brightness, pixels.adjust_brightness),
    (keys[1], options.contrast, pixels.adjust_contrast),
    (keys[2], options.saturation, pixels.adjust_saturation),
  ):
    if _is_on(width):
      # Python's where it is a number: a constant of the program.
      least = 1 - width
      least = jnp.maximum(0.0, least) if _is_given(width) else max(0.0, least)
      factor = jax.random.uniform(key, batch, minval=least, maxval=1 + width)
      video = adjust(video, factor)
  if _is_on(options.hue):
    turns = jax.random.uniform(
      keys[3], batch, minval=-options.hue, maxval=options.hue
    )
    video = pixels.turn_hue(video, turns)
  return video


def random_erase(
  video: Video,
  rng: Key[Array, ''],
  options: Augmentation,
  fill: tuple[float, ...],
) -> Video:
  """Fills a random rectangle of some clips with one colour.

  Args:
    video: RGB, 0..255.
    rng: Key.
    options: erase_probability, of a clip to have such a rectangle; erase_area,
      the range of its share of the picture; erase_aspect, the range of its
      height / width, drawn evenly on a log scale.
    fill: Its RGB.

  Source: Zhong et al. 2020 (arXiv:1708.04896), algorithm 1.
  Differs: One colour, not noise; sides are cut to the picture's where the paper
    draws again.
  """
  keys = jax.random.split(rng, 4)
  batch = (video.shape[0],)
  height, width = video.shape[2:4]
  low, high = options.erase_area
  share = jax.random.uniform(keys[0], batch, minval=low, maxval=high)
  low, high = map(math.log, options.erase_aspect)
  ratio = jnp.exp(jax.random.uniform(keys[1], batch, minval=low, maxval=high))
  size_px = share * height * width
  sides = jnp.stack([jnp.sqrt(size_px * ratio), jnp.sqrt(size_px / ratio)])
  size = jnp.array([[height], [width]])
  sides = jnp.minimum(jnp.round(sides), size)
  start = jnp.floor(
    jax.random.uniform(keys[2], (2, *batch)) * (size - sides + 1)
  )
  inside = _rectangle(start, sides, height, width)
  inside &= jax.random.bernoulli(keys[3], options.erase_probability, batch)[
    :, None, None
  ]
  return jnp.where(inside[:, None, :, :, None], jnp.array(fill), video)


def mix(
  video: Video,
  label: Float[Array, 'B K'],
  rng: Key[Array, ''],
  options: Augmentation,
  *,
  distance: int = 1,
) -> dict:
  """Mixes each clip, and its label, with one before it in the batch.

  Mixup adds the two with weights; CutMix takes a rectangle, the same in all
  frames, from the other one. The labels' weights are the clips' shares of the
  pixels, exactly.

  Args:
    video: RGB, 0..255.
    label: Weights of the classes.
    rng: Key.
    options: With mixup_alpha, the own share of a clip follows Beta(alpha,
      alpha); with cutmix_alpha, the share of the pixels outside the rectangle
      does. Where both are on, half of the clips are mixed by each.
    distance: How many places before it that one is.

  Returns:
    {'video', 'label'}.

  Source: Zhang et al. 2018 (arXiv:1710.09412); Yun et al. 2019
    (arXiv:1905.04899).
  """
  keys = jax.random.split(rng, 4)
  batch, _, height, width, _ = video.shape
  mixup, cutmix = options.mixup_alpha, options.cutmix_alpha
  own = None
  if _is_on(mixup):
    own = jnp.broadcast_to(
      _own_share(keys[0], mixup, batch)[:, None, None], (batch, height, width)
    )
  if _is_on(cutmix):
    cut = jnp.sqrt(1 - _own_share(keys[1], cutmix, batch))
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
      chance = _chance_of_mixup(mixup, cutmix)
      which = jax.random.bernoulli(keys[3], chance, (batch, 1, 1))
      own = jnp.where(which, own, own_cutmix)
  # A neighbour, not a random clip: clips are shuffled already, and only so many
  # clips move between devices.
  share = own.mean((1, 2))[:, None]
  own = own[:, None, :, :, None]
  return {
    'video': own * video + (1 - own) * jnp.roll(video, distance, 0),
    'label': share * label + (1 - share) * jnp.roll(label, distance, 0),
  }


def _own_share(key: jax.Array, alpha: Strength, batch: int) -> jax.Array:
  """Draws Beta(alpha, alpha) for each clip; 1 where alpha is 0 in this step."""
  if not _is_given(alpha):
    return jax.random.beta(key, alpha, alpha, (batch,))
  # The distribution has no value at 0; the least alpha that can be told from it
  # gives 0 or 1, which is not "off".
  drawn = jax.random.beta(key, *(jnp.maximum(alpha, 1e-3),) * 2, (batch,))
  return jnp.where(alpha > 0, drawn, 1.0)


def _chance_of_mixup(mixup: Strength, cutmix: Strength) -> Strength:
  """Share of the clips that mixup mixes, where CutMix mixes the others."""
  if not (_is_given(mixup) or _is_given(cutmix)):
    return 0.5
  only_one = jnp.where(jnp.asarray(mixup) > 0, 1.0, 0.0)
  both = jnp.logical_and(jnp.asarray(mixup) > 0, jnp.asarray(cutmix) > 0)
  return jnp.where(both, 0.5, only_one)


def _rectangle(start, sides, height: int, width: int) -> jax.Array:
  """Bool [B, H, W], true inside rectangles; start and sides [2, B]: y, x."""
  rows, columns = jnp.arange(height), jnp.arange(width)
  end = start + sides
  inside_y = (rows >= start[0, :, None]) & (rows < end[0, :, None])
  inside_x = (columns >= start[1, :, None]) & (columns < end[1, :, None])
  return inside_y[:, :, None] & inside_x[:, None, :]
