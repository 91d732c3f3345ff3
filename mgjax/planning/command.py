"""The command mgjax.plan: makes the plan that its flags ask for."""

import json
import os
import pathlib
import sys
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from mgjax import cli, files
from mgjax.cli import ConfigError
from mgjax.grids import cycles
from mgjax.planning import plan_text, step_seconds
from mgjax.planning.plan import (
  compiled_bytes,
  dataset_size,
  make_plan,
  training_time,
)
from mgjax.setup import data as data_setup
from mgjax.setup import run_checks


def main(values: flags.FlagValues, *configs: str) -> None:
  """Makes the plan that the flags ask for, and writes it."""
  if not values.compile:
    # Planning takes no accelerator, nor the seconds of finding one.
    os.environ['JAX_PLATFORMS'] = 'cpu'
  output = pathlib.Path(values.output or 'plan.png')
  if values.output or values.format == 'png':
    files.check_output(output, f'--output={output}')
  if values.diff and values.budget_hours:
    raise ConfigError('give one of --diff and --budget_hours')
  if values.format == 'png' and (values.diff or values.budget_hours):
    raise ConfigError(
      '--format=png draws one schedule; with --diff and --budget_hours use '
      'table or json'
    )
  if values.diff:
    _refuse_of_one_schedule(values)
    _write(values.output, _diff(values, configs))
    return
  if configs:
    raise ConfigError(
      f'unexpected argument {configs[0]!r}; flags look like --config=FILE.'
    )
  config = values.config
  num_train, size_source = dataset_size(config)
  run_checks.check(config, data_setup.describe(config), values.num_devices)
  if config.eval.head != 'global':
    from mgjax.setup import evaluation, network

    evaluation.head_window(config, network.model(config))
  if values.budget_hours:
    _write(values.output, _budget(values, config, num_train))
    return
  schedule = cycles.make_schedule(
    config, num_train, num_devices=values.num_devices
  )
  plan = make_plan(
    config, schedule, size_source=size_source, num_devices=values.num_devices
  )
  full = cycles.full_grid(config)
  costs = dict(zip(schedule.grids, plan['gmacs_per_clip'], strict=True))
  costs[full] = plan['baseline']['gmacs'] / plan['baseline']['clips']
  step_s = step_seconds.step_seconds(values, costs, full, config.model.name)
  if step_s is not None:
    plan['time'] = training_time(config, schedule, plan, step_s)
  memory_plan = plan['memory']
  if values.device_memory_gib:
    memory_plan['device_bytes'] = int(values.device_memory_gib * 2**30)
  if values.compile:
    from mgjax.planning import memory

    sizes = compiled_bytes(config, schedule, num_devices=values.num_devices)
    memory_plan['compiled_bytes'] = [sizes[grid] for grid in schedule.grids]
    memory_plan['device_bytes'] = memory_plan[
      'device_bytes'
    ] or memory.device_bytes(config)
  if values.format == 'png':
    from mgjax.planning import plan_picture

    plan_picture.draw(plan, schedule, output)
    print(f'wrote {output}', file=sys.stderr)
    return
  text = plan_text.table(plan)
  if values.format == 'json':
    text = json.dumps(plan, indent=1)
  _write(values.output, text)


def _budget(
  values: flags.FlagValues, config: ml_collections.ConfigDict, num_train: int
) -> str:
  """Finds what fits --budget_hours."""
  from mgjax.planning import plan_budget

  candidates = plan_budget.search(config, num_train, values)
  if values.format == 'json':
    return json.dumps([c._asdict() for c in candidates], indent=1)
  return plan_budget.table(candidates, values.budget_hours)


def _refuse_of_one_schedule(values: flags.FlagValues) -> None:
  """Refuses flags that say something of one schedule only."""
  given = [
    name
    for name in ('config', *step_seconds.FLAGS, 'compile', 'device_memory_gib')
    if values[name].present
  ]
  if given:
    raise ConfigError(
      f'--{given[0]} does nothing with --diff; plan one config with it'
    )


def _diff(values: flags.FlagValues, names: Sequence[str]) -> str:
  """Compares two values of --config; overrides act on both."""
  if len(names) != 2:
    raise ConfigError(
      f'--diff compares two configs, and {len(names)} are given; write --diff '
      'configs/kinetics400.py:grid=none configs/kinetics400.py:grid=both'
    )
  overrides = config_flags.get_override_values(values['config'])
  configs = [
    cli.read_config(name, [f'--config.{k}={v}' for k, v in overrides.items()])
    for name in names
  ]
  plans = []
  for config in configs:
    num_train, size_source = dataset_size(config)
    schedule = cycles.make_schedule(
      config, num_train, num_devices=values.num_devices
    )
    plans.append(make_plan(config, schedule, size_source=size_source))
  fields = plan_text.differing_fields(*(c.to_dict() for c in configs))
  if values.format == 'json':
    return json.dumps({'fields': fields, 'plans': plans}, indent=1)
  return plan_text.diff(fields, *plans)


def _write(path: str | None, text: str) -> None:
  if path:
    pathlib.Path(path).write_text(text + '\n', encoding='utf-8')
  else:
    print(text)
