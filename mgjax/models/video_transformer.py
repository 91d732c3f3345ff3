"""What video transformers share around their blocks: how clips are cut."""

from mgjax.models import head, positions
from mgjax.models.positions import Sizes


class VideoTransformer(head.VideoNetwork):
  """A network whose clips are cut into tubelets.

  Its options have width, heads, patch_px and position_grid.

  Raises:
    ValueError: Heads do not divide the width, or `position_grid` is not of
      whole tubelets.
  """

  def __post_init__(self):
    super().__post_init__()
    self._check_heads('heads')
    if self._has_position_grid:
      self._tokens(self.position_grid, 'position_grid has')

  def _check_heads(self, field: str) -> None:
    heads = getattr(self, field)
    if self.width % heads:
      raise ValueError(
        f'{field} is {heads}; it must divide the width of {self.width}.'
      )

  @property
  def _has_position_grid(self) -> bool:
    """Whether `position_grid` means something."""
    return True

  @property
  def _tubelet(self) -> Sizes:
    return getattr(self, 'tubelet_frames', 1), self.patch_px, self.patch_px

  def _tokens(self, clip: Sizes, what: str) -> Sizes:
    """See `positions.count_tokens`."""
    return positions.count_tokens(clip, self._tubelet, what)

  def example_clip(self, num_frames: int) -> Sizes:
    return self._tubelet
