"""What the runs that have no record yet will cost."""

import functools
import pathlib
from typing import NamedTuple

from experiments import costs
from experiments.runs import catalogue, generated, record, settings
from experiments.runs.run import Run
from mgjax import cli
from mgjax.cli import ConfigError
from mgjax.planning import plan
from mgjax.setup import clip_costs


class Planned(NamedTuple):
  """A training that has no record yet."""

  run: Run
  seed: int
  record: str  # Its name.
  config: str  # Value of --config.
  gmacs: float  # 1e9 multiply-adds of all forward and backward passes.

  def hours(self, rate: float) -> float:
    """Hours, given 1e9 multiply-adds per second of training."""
    return self.gmacs / rate / 3600


def runs_to_make(
  table: str,
  seeds: int,
  overrides: tuple[str, ...] = (),
  records: pathlib.Path | None = None,
) -> list[Planned]:
  """The runs of a table that have no record yet, with more overrides.

  Seed by seed, so that a drift of the machine's speed touches all rows alike.
  """
  found = []
  for number in range(seeds):
    for run in catalogue.RUNS[table]:
      seed = run.first_seed + number
      name = f'{run.name}-seed{seed}'
      if not record.exists(name, records):
        config = f'{run.config},seed={seed}'
        gmacs = training_gmacs(run)
        run = run._replace(overrides=(*run.overrides, *overrides))
        found.append(Planned(run, seed, name, config, gmacs))
  return found


@functools.cache
def training_gmacs(run: Run) -> float:
  """1e9 multiply-adds of one training.

  A backward pass takes twice the forward pass's.
  """
  config = cli.read_config(run.config, run.overrides)
  schedule = settings.schedule(config)
  if run.file == generated.FILE:
    gmacs = clip_costs.gmacs_per_clip(config, schedule.grids, schedule.phases)
    return 3 * plan.total_gmacs(schedule, gmacs)
  cost = costs.run_cost(schedule, run.model, config.model.num_classes)
  return 3 * cost.macs / 1e9


def rate_of(name: str) -> tuple[float, str]:
  """1e9 multiply-adds per second of a record, and the hardware it ran on.

  Raises:
    ConfigError: There is no such record.
  """
  if not record.exists(name):
    known = ', '.join(entry['name'] for entry in record.load('*'))
    raise ConfigError(
      f'--record={name} is not in {record.RECORDS}; there are: '
      f'{known or "none yet"}.'
    )
  (entry,) = record.load(name)
  machine = entry['summary']['environment']
  return (
    3 * record.plan_of(entry)['total_gmacs'] / entry['summary']['train_s'],
    f'{machine["num_devices"]} x {machine["device"]}',
  )
