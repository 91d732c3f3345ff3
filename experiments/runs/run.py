"""What a run is: everything about a training but its seed."""

from typing import NamedTuple


class Run(NamedTuple):
  """Trainings that differ in the seed only.

  Attributes:
    name: EXPERIMENT/NAME; the records are called EXPERIMENT/NAME-seedN.
    row: What a table calls it.
    file: Config file, without its folder and suffix: 'kinetics400'.
    grid: config.grid.mode, one of `mgjax.grids`' modes.
    model: Network, as the config file's argument `model` has it.
    frames: Of a clip of the full grid; 0: those of the config file.
    arguments: Further arguments of the config file: ('size=small',).
    overrides: Of config fields: ('--config.grid.epoch_factor=2.0',).
    baseline: Name of the run that its speed-ups refer to; '': none.
    test_split: Split that judges the trained network, and that no choice was
      made on; '': none does.
    first_seed: Of its seeds, which follow one another.
    is_cold: Whether each training begins without compiled programs, in a cache
      of its own.
  """

  name: str
  row: str
  file: str
  grid: str
  model: str
  frames: int = 0
  arguments: tuple[str, ...] = ()
  overrides: tuple[str, ...] = ()
  baseline: str = ''
  test_split: str = ''
  first_seed: int = 0
  is_cold: bool = False

  @property
  def config(self) -> str:
    """Value of --config, without the seed."""
    arguments = (f'model={self.model}', f'grid={self.grid}', *self.arguments)
    return f'configs/{self.file}.py:{",".join(arguments)}'
