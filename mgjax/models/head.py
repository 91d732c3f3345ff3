"""The end of every network: an average, dropout, a linear classifier.

Averages go over all positions, whatever size arrives, so one head serves every
grid of a schedule.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mgjax.config import network_options
from mgjax.config.setting import accepted
from mgjax.models.dropout import Dropout

# Name of the head in the parameters of every network; it alone has shapes that
# depend on the classes.
HEAD = 'head'

ClipIndex = Int[Array, ' B'] | None
Window = tuple[int, int, int]

# Standard deviation of the classifier's initial weights.
_STD_OF_CLIPS = 0.01
_STD_OF_FRAMES = 0.001


class VideoNetwork(nn.Module, network_options.Given, kw_only=True):
  """What every network has besides its options (config/network_options.py).

  Attributes:
    head_modules: Names of the modules behind the backbone: what classifies,
      and what pools by learned attention.
    additions: Names of parameters that are added to features and weigh none,
      such as tables of positions and tokens of classes.

  Raises:
    ValueError: An option has a value that is not accepted.
  """

  head_modules: ClassVar[tuple[str, ...]] = (HEAD, 'probe')
  additions: ClassVar[tuple[str, ...]] = (
    *('class_token', 'position_table', 'time_table'),
    *('rel_pos_t', 'rel_pos_h', 'rel_pos_w'),
  )

  def __post_init__(self):
    super().__post_init__()
    for field in dataclasses.fields(self):
      value, rule = getattr(self, field.name), accepted(field)
      # Of types, a config can name two; code takes any, such as float64.
      if rule and field.name != 'dtype' and not rule.has(value):
        raise ValueError(f'{field.name} is {value!r}; it must be {rule.text}.')

  def changed(self, **options: Any) -> 'VideoNetwork':
    """The same network with other options.

    Args:
      **options: Such as remat=False.
    """
    return self.clone(**options)

  def on(self, platform: str) -> 'VideoNetwork':
    """The same network, arranged for a kind of devices.

    Args:
      platform: As JAX names it: 'cpu', 'gpu' or 'tpu'.
    """
    del platform
    return self

  def example_clip(self, num_frames: int) -> Window:
    """Frames, height and width of a small clip that the network takes.

    Args:
      num_frames: Of the training clips.
    """
    return num_frames, 32, 32

  def layer_of(self, path: tuple[str, ...]) -> int | None:
    """Number of the layer that a parameter belongs to, from the pixels on.

    Of a residual network, the stem is layer 0, and stages follow. Of a
    transformer, what makes the tokens is layer 0, and blocks follow.

    Args:
      path: The names on the way to it.

    Returns:
      0 or more; None: the last layer, behind all that have a number.

    Raises:
      ValueError: The network has parts that are neither.
    """
    # All networks of residual stages name them so; SlowFast's have a prefix.
    stage = re.fullmatch(r'([a-z]+_)?(stem|res(\d+))', path[0])
    if stage:
      return int(stage[3]) - 1 if stage[3] else 0
    block = re.fullmatch(r'block(\d+)', path[0])
    if block:
      return int(block[1]) + 1
    if path[0] == 'embed' or path[0] in self.additions:
      return 0
    if path[0] in (*self.head_modules, 'norm', 'pool_norm'):
      return None
    raise ValueError(
      f'layer_decay needs to know the layer of {"/".join(path)}, which the '
      'network does not tell (a method `layer_of` does); leave it at 1.'
    )

  @property
  def draws_by_clip(self) -> bool:
    """Whether dropout depends on a clip's number in the batch (`Dropout`)."""
    return True

  @property
  def computes_by_clip(self) -> bool:
    """Whether each clip is computed alone, but for mgjax's batch norms.

    Then a device may compute its own clips without the others'.
    """
    return True


class Head(nn.Module):
  """Average of each pathway, joined, dropout, linear classifier.

  Of clips, the average is over frames, rows and columns. Of frames
  (`per_frame`), it is over rows and columns: every frame has its own dropout
  mask and its own logits, and these are averaged.

  Attributes:
    num_classes: K.
    dropout: Rate before the classifier, in training.
    per_frame: Whether each frame is classified by itself.
    dtype: Compute type of the network.
    std: Standard deviation of the classifier's initial weights; None: 0.01, or
      0.001 of frames.

  Source: PySlowFast 287ec00, models/head_helper.py, ResNetBasicHead: global
    pooling with the short cycle on, windows of the training clip's size
    without. Of frames: mit-han-lab/temporal-shift-module, ops/models.py
    (classifier from N(0, 0.001), consensus 'avg'), the same in IBM/bLVNet-TAM
    feadcd3.
  Differs: IBM's 2-D networks take torch's default for the classifier.
  """

  num_classes: int
  dropout: float
  per_frame: bool = False
  dtype: Any = jnp.float32
  std: float | None = None

  @nn.compact
  def __call__(
    self,
    pathways: Sequence[Float[Array, 'B _ _ _ _']],
    *,
    deterministic: bool,
    clip_index: ClipIndex = None,
    windows: Sequence[Window] | None = None,
  ) -> Float[Array, 'B *positions K']:
    """Returns logits: one for the clip, or [t, h, w] with `windows`.

    Args:
      pathways: Features of each pathway.
      deterministic: Whether dropout is off.
      clip_index: Numbers of the clips, for `Dropout`.
      windows: Per pathway, frames, rows and columns of its features that one
        average covers; the classifier is applied to the average of each
        position of the window. All pathways must have equally many positions.
        None: the average of all.

    Raises:
      ValueError: If a window does not fit, or the positions differ.
    """
    # The classifier runs in float32 at least: it is small, and bfloat16
    # logits would cost the loss its digits.
    dtype = jnp.promote_types(self.dtype, jnp.float32)
    pathways = [x.astype(dtype) for x in pathways]
    if windows is not None:
      features = _averages(pathways, windows)
    else:
      axes = (2, 3) if self.per_frame else (1, 2, 3)
      features = [x.mean(axes) for x in pathways]
    x = jnp.concatenate(features, axis=-1)
    x = Dropout(self.dropout)(x, clip_index, deterministic=deterministic)
    std = self.std
    if std is None:
      std = _STD_OF_FRAMES if self.per_frame else _STD_OF_CLIPS
    x = nn.Dense(
      self.num_classes,
      dtype=dtype,
      kernel_init=nn.initializers.normal(std),
      name='classifier',
    )(x)
    return x.mean(1) if self.per_frame else x


def _averages(
  pathways: Sequence[Float[Array, 'B _ _ _ _']], windows: Sequence[Window]
) -> list[Float[Array, 'B t h w _']]:
  """The average of each position of a window, in each pathway."""
  sizes = [x.shape[1:4] for x in pathways]
  positions = [
    tuple(n - k + 1 for n, k in zip(size, window, strict=True))
    for size, window in zip(sizes, windows, strict=True)
  ]
  if len(set(positions)) > 1 or min(min(p) for p in positions) < 1:
    raise ValueError(
      f'Windows {windows} do not fit features of {sizes} positions.'
    )
  return [
    nn.avg_pool(x, window) for x, window in zip(pathways, windows, strict=True)
  ]


def features_window(
  clip: Window, num_stages: int, frames_per_position: int
) -> Window:
  """The window of features that a training clip of a size has.

  Args:
    clip: Frames, height and width.
    num_stages: The stem divides the sides by 4, every stage but the first
      by 2: with four stages, a position is 32 pixels.
    frames_per_position: Of the features.

  Source: PySlowFast 287ec00, models/video_model_builder.py (pool_size:
    TRAIN_CROP_SIZE // 32).
  """
  t, h, w = clip
  stride = 2 ** (num_stages + 1)
  return (
    max(t // frames_per_position, 1),
    max(h // stride, 1),
    max(w // stride, 1),
  )


def classify(
  network: nn.Module,
  pathways: Sequence[Float[Array, 'B _ _ _ _']],
  *,
  in_training: bool,
  deterministic: bool | None,
  clip_index: ClipIndex,
  per_frame: bool = False,
  windows: Sequence[Window] | None = None,
  std: float | None = None,
) -> Float[Array, 'B *positions K']:
  """Ends a network's `__call__`: its head, from its attributes.

  Args:
    network: It has num_classes, dropout and dtype.
    pathways: Features of each pathway.
    in_training: Whether batch norm is by the statistics of groups.
    deterministic: Whether dropout is off; None: where it is not in training.
    clip_index, windows, std: As those of `Head`.
    per_frame: Whether each frame is classified by itself.
  """
  if deterministic is None:
    deterministic = not in_training
  head = Head(
    network.num_classes,
    network.dropout,
    per_frame,
    network.dtype,
    std,
    name=HEAD,
  )
  return head(
    pathways,
    deterministic=deterministic,
    clip_index=clip_index,
    windows=windows,
  )
