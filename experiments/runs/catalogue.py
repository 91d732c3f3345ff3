"""All runs, by the table that shows them."""

from collections.abc import Sequence
from typing import Any

from experiments.runs import generated, judged, papers, record
from mgjax import cli
from mgjax.config import saved

RUNS = {**generated.RUNS, **judged.RUNS, **papers.RUNS}


def mismatches() -> list[str]:
  """Says which records are not of the run whose name they have; [] if all are.

  A run whose settings have changed needs another name, or its records to go.
  What the weights start from (--init_from) may differ.
  """
  found = []
  for table, runs in RUNS.items():
    for entry in record.load(table):
      name, _, seed = entry['name'].rpartition('-seed')
      run = next((run for run in runs if run.name == name), None)
      if run is None:
        found.append(f'{entry["name"]}: {table} has no run of this name')
        continue
      ours = _settings(f'{run.config},seed={seed}', run.overrides)
      if _settings(entry['config'], entry['overrides']) != ours:
        found.append(f'{entry["name"]}: its config is not that of its run')
  return found


def _settings(config: str, overrides: Sequence[str]) -> dict[str, Any]:
  """Those of a run, but the weights that it starts from."""
  kept = [o for o in overrides if not o.startswith('--config.init_')]
  return saved.as_json(cli.read_config(config, kept))
