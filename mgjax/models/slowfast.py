"""SlowFast: a wide pathway on few frames, a narrow one on all of them.

Source: Feichtenhofer et al. 2019 (arXiv:1812.03982); PySlowFast 287ec00,
models/video_model_builder.py.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mgjax.config import network_options
from mgjax.models import head, resnet3d
from mgjax.models.head import ClipIndex, Window
from mgjax.models.nonlocal_block import NonLocalBlock
from mgjax.tpu import lanes


def slow_frames(num_frames: int, alpha: int) -> np.ndarray:
  """Indices of the frames the slow pathway sees: evenly spread, both ends.

  floor(linspace(0, num_frames - 1, num_frames // alpha)) in integers: as
  float32, torch's linspace is off by one at some lengths (160 frames).

  Source: PySlowFast 287ec00, datasets/utils.py, pack_pathway_output.
  Differs: Of fewer frames than alpha the slow pathway sees the first one; the
    reference leaves it none and fails.
  """
  num_slow = max(num_frames // alpha, 1)
  return np.arange(num_slow) * (num_frames - 1) // max(num_slow - 1, 1)


class SlowFast(head.VideoNetwork, network_options.SlowFast):
  """Two-pathway network.

  Attributes:
    num_lanes: Channels that take no more space than one, see `on`. Parameters
      and results do not depend on it.
  """

  num_lanes: int = 1

  def __post_init__(self):
    super().__post_init__()
    if self.width % self.beta_inv:
      raise ValueError(
        f'width {self.width} is not divisible by beta_inv {self.beta_inv}.'
      )

  def on(self, platform: str) -> 'SlowFast':
    """The same network; on TPUs it fills their lanes (tpu/lanes.py).

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
    """
    return self.clone(num_lanes=128 if platform == 'tpu' else 1)

  def _beside(self, stage: int, frames: int) -> int:
    """Fast frames that lie side by side in a stage; -1 is the stem."""
    if stage >= 0 and any(self.nonlocal_blocks_fast[stage : stage + 1]):
      return 1
    inner = self.width // self.beta_inv * 2 ** max(stage, 0)
    return lanes.num_beside(inner, frames, self.num_lanes)

  def _fuse(
    self,
    x: dict[str, Array],
    beside: int,
    layer: Callable[..., resnet3d.Layer],
    same_group: resnet3d.SameGroup,
    name: str,
  ) -> dict[str, Array]:
    """Joins fast features to the slow pathway's, at its frame rate."""
    channels = x['fast'].shape[-1] // beside
    joined = 1 if beside % self.alpha else beside
    lateral = layer(
      self.fusion_ratio * channels,
      (self.fusion_kernel, 1, 1),
      (self.alpha, 1, 1),
      beside=joined,
      name=name,
    )(lanes.regroup(x['fast'], beside, joined), same_group)
    lateral = lanes.regroup(lateral, max(joined // self.alpha, 1), 1)
    # A length that alpha does not divide has one more strided position.
    lateral = lateral[:, : x['slow'].shape[1]]
    slow = jnp.concatenate([x['slow'], lateral], axis=-1)
    return {'slow': slow, 'fast': x['fast']}

  def _stage(
    self,
    path: str,
    width: int,
    i: int,
    blocks: tuple[int, ...],
    layer: Callable[..., resnet3d.Layer],
    beside: int,
  ) -> resnet3d.Stage:
    """Stage i of a pathway ('slow' or 'fast') with `width` after its stem."""
    nonlocal_of = {
      'slow': {
        'after': self.nonlocal_blocks,
        'groups': self.nonlocal_groups,
        'pool': self.nonlocal_pool,
      },
      'fast': {
        'after': self.nonlocal_blocks_fast,
        'groups': self.nonlocal_groups_fast,
        'pool': self.nonlocal_pool_fast or self.nonlocal_pool,
      },
    }
    nonlocal_block = functools.partial(
      resnet3d.maybe_remat(NonLocalBlock, self.remat),
      mode=self.nonlocal_mode,
      **resnet3d.layer_options(self),
    )
    return resnet3d.Stage(
      4 * width * 2**i,
      blocks[i],
      resnet3d.TEMPORAL_KERNELS[path][i],
      stride=1 if i == 0 else 2,
      layer=layer,
      num_temporal=self.num_temporal[i] if self.num_temporal else None,
      remat=self.remat,
      beside=beside,
      **resnet3d.nonlocal_options(
        i, blocks, block=nonlocal_block, **nonlocal_of[path]
      ),
      name=f'{path}_res{i + 2}',
    )

  def _blocks(self) -> tuple[int, ...]:
    """Blocks of each stage."""
    return resnet3d.stage_blocks(self.depth, self.blocks)

  def _features(
    self, video: Float[Array, 'B T H W 3'], same_group: resnet3d.SameGroup
  ) -> list[Float[Array, 'B t h w C']]:
    """What the slow and the fast pathway end with."""
    layer = functools.partial(resnet3d.Layer, **resnet3d.layer_options(self))
    widths = {'slow': self.width, 'fast': self.width // self.beta_inv}
    x = {
      'slow': video[:, slow_frames(video.shape[1], self.alpha)],
      'fast': video,
    }
    beside = self._beside(-1, video.shape[1])
    x['fast'] = lanes.regroup(x['fast'], 1, beside)
    x = {
      path: resnet3d.Stem(
        widths[path],
        resnet3d.STEM_KERNELS[path],
        functools.partial(layer, beside=beside if path == 'fast' else 1),
        name=f'{path}_stem',
      )(x[path], same_group)
      for path in x
    }
    x = self._fuse(x, beside, layer, same_group, 'fuse_stem')
    blocks = self._blocks()
    resnet3d.check_num_temporal(self.num_temporal, blocks)
    for i in range(len(blocks)):
      before, beside = beside, self._beside(i, video.shape[1])
      x['fast'] = lanes.regroup(x['fast'], before, beside)
      x = {
        path: self._stage(
          path,
          widths[path],
          i,
          blocks,
          layer,
          beside if path == 'fast' else 1,
        )(x[path], same_group)
        for path in x
      }
      if i < len(blocks) - 1:  # The head joins what the last stage gives.
        x = self._fuse(x, beside, layer, same_group, f'fuse_res{i + 2}')
    return [x['slow'], lanes.regroup(x['fast'], beside, 1)]

  @nn.compact
  def __call__(
    self,
    video: Float[Array, 'B T H W 3'],
    same_group: resnet3d.SameGroup = None,
    *,
    deterministic: bool | None = None,
    clip_index: ClipIndex = None,
    window: Window | None = None,
  ) -> Float[Array, 'B *positions K']:
    """Returns logits: [B, K], or [B, t, h, w, K] with `window`.

    Args:
      video: Normalised clips.
      same_group: Batch-norm groups (`norm.group_matrix`) in training; None in
        evaluation, which uses running statistics.
      deterministic: Whether dropout is off; by default in evaluation.
      clip_index: Their numbers in the batch, for `Dropout`; None: 0, 1, 2, ...
      window: Frames, height and width of the training clip: the head slides a
        window of that size over the features of a larger clip. The frames
        must be those of `video`: the pathways differ in frame rate.
    """
    features = self._features(video.astype(self.dtype), same_group)
    windows = None
    if window is not None:
      windows = [
        head.features_window(window, len(self._blocks()), frames)
        for frames in (self.alpha, 1)
      ]
    return head.classify(
      self,
      features,
      in_training=same_group is not None,
      deterministic=deterministic,
      clip_index=clip_index,
      windows=windows,
    )
