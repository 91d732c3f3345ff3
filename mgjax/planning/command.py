"""The command mgjax.plan: makes the plan that its flags ask for."""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from mgjax import cli, files
from mgjax.config import saved
from mgjax.errors import ConfigError
from mgjax.grids import GridSchedule
from mgjax.planning import plan as plan_lib
from mgjax.planning import plan_budget, plan_text, step_seconds, targets
from mgjax.setup import (
  clip_costs,
  grids,
  planning,
  run_checks,
  run_settings,
  wall_time,
)
from mgjax.setup import data as data_setup

_PICTURE = 'plan.png'  # What --format=png writes without --output.


def main(values: flags.FlagValues, *configs: str) -> None:
  """Makes the plan that the flags ask for, and writes it."""
  _check_flags(values)
  if values.target:
    targets.prepare(values.target)
  elif not values.compile:
    # Planning takes no accelerator, nor the seconds of finding one.
    os.environ['JAX_PLATFORMS'] = 'cpu'
  if values.diff:
    _write(values, *_diff(values, configs))
    return
  if configs:
    raise ConfigError(
      f'unexpected argument {configs[0]!r}; flags look like --config=FILE.'
    )
  target = _find_target(values) if values.target else None
  config = data_setup.with_classes(values.config)
  num_train, size_source = grids.dataset_size(config)
  run_checks.check(config, data_setup.describe(config), values.num_devices)
  if config.eval.head != 'global':
    from mgjax.setup import evaluation, network

    evaluation.head_window(config, network.model(config))
  if values.budget_hours:
    _write(values, *_budget(values, config, num_train))
    return
  schedule = grids.schedule(config, num_train, num_devices=values.num_devices)
  planning.check_own_network(
    config,
    {*schedule.grids, grids.eval_grid(config)},
    trains=True,
    phases=schedule.phases,
  )
  planning.check_network(config, [grids.eval_grid(config)])
  planning.check_parameters(config)
  plan = _plan(values, config, schedule, size_source, target)
  # Once nothing is refused: that is one line, without advice.
  for line in planning.warnings_of_schedule(config, schedule):
    print(line, file=sys.stderr)
  if values.format != 'png':
    _write(values, plan, lambda: plan_text.table(plan))
    return
  # Matplotlib takes a second to import.
  from mgjax.planning import plan_picture

  output = values.output or _PICTURE
  plan_picture.draw(plan, schedule, output)
  print(f'wrote {output}', file=sys.stderr)


def _check_flags(values: flags.FlagValues) -> None:
  """Refuses flags that do not go together, and outputs that cannot be."""
  is_picture = values.format == 'png'
  if output := values.output or (is_picture and _PICTURE):
    files.check_output(output, f'--output={output}')
  if values.diff and values.budget_hours:
    raise ConfigError('give one of --diff and --budget_hours')
  if is_picture and (values.diff or values.budget_hours):
    raise ConfigError(
      '--format=png draws one schedule; with --diff and --budget_hours use '
      'table or json'
    )
  if values.target and not values.compile:
    raise ConfigError(f'--target={values.target} needs --compile')
  if values['grids'].present and not values.target:
    raise ConfigError(f'--grids={values.grids} needs --compile --target=NAME')
  if values.target and values.budget_hours:
    raise ConfigError('give one of --target and --budget_hours')
  # What says something of one schedule only.
  of_one = (
    *('config', *step_seconds.FLAGS),
    *('compile', 'target', 'device_memory_gib'),
  )
  for name in of_one if values.diff else ():
    if values[name].present:
      raise ConfigError(
        f'--{name} does nothing with --diff; plan one config with it'
      )


def _find_target(values: flags.FlagValues) -> targets.Target:
  """The devices of --target, which share each batch of the plan."""
  target = targets.find(values.target)
  number = len(target.devices)
  if values['num_devices'].present and values.num_devices != number:
    raise ConfigError(
      f'--num_devices={values.num_devices}, but --target={values.target} is '
      f'{number} device(s); leave --num_devices away'
    )
  values.num_devices = number
  return target


def _write(
  values: flags.FlagValues, data: Any, table: Callable[[], str]
) -> None:
  """Writes JSON data, or the table of it, where the flags say."""
  is_json = values.format == 'json'
  text = json.dumps(data, indent=1) if is_json else table()
  if values.output:
    pathlib.Path(values.output).write_text(text + '\n', encoding='utf-8')
  else:
    print(text)


def _plan(
  values: flags.FlagValues,
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  size_source: str,
  target: targets.Target | None,
) -> dict[str, Any]:
  """Returns the plan, with the hours and programs that are asked for."""
  num_devices = values.num_devices
  plan = planning.make_plan(
    config, schedule, size_source=size_source, num_devices=num_devices
  )
  full = grids.full_grid(config)
  costs = dict(zip(schedule.grids, plan['gmacs_per_clip'], strict=True))
  costs[full] = plan['baseline']['gmacs'] / plan['baseline']['clips']
  step_s = step_seconds.step_seconds(values, costs, full, saved.as_json(config))
  if step_s is not None:
    plan['time'] = plan_lib.training_time(schedule, plan, step_s)
  device_bytes = int(
    2**30 * (values.device_memory_gib or config.train.device_memory_gib)
  )
  if target and device_bytes:
    target = dataclasses.replace(target, device_bytes=device_bytes)
  if values.compile:
    # Import JAX, which finds the devices.
    from mgjax.planning import ahead, compiled

    if target:
      plan['target'] = target.as_json()
      plan['compiled'] = ahead.compile_all(
        config, schedule, target, which=values.grids
      )
    else:
      plan['compiled'] = compiled.measure(
        config, schedule, num_devices=num_devices, device_bytes=device_bytes
      )
    device_bytes = plan['compiled'][0]['device_bytes']
  plan['memory'] = plan_lib.memory(
    schedule.grids, num_devices, device_bytes, plan.get('compiled', ())
  )
  plan['wall_time'] = wall_time.plan(
    config, schedule, num_devices=num_devices, step_s=step_s
  )
  return plan


def _budget(
  values: flags.FlagValues, config: ml_collections.ConfigDict, num_train: int
) -> tuple[list[dict], Callable[[], str]]:
  """Finds what fits --budget_hours: its JSON data and its table."""
  schedule_of = lambda mode, factor, videos: grids.schedule(
    with_factor(config, mode, factor), videos, num_devices=values.num_devices
  )
  modes, used = plan_budget.modes_and_grids(
    schedule_of, num_train, own=config.grid.mode
  )
  full = grids.full_grid(config)
  step_s = step_seconds.step_seconds(
    values,
    clip_costs.gmacs_per_clip(config, {full, *used}),
    full,
    saved.as_json(config),
  )
  if step_s is None:
    raise ConfigError(
      f'--budget_hours={values.budget_hours:g}: how long steps take must be '
      f'known; give {step_seconds.NAMES}'
    )
  by_steps = config.optim.schedule == 'steps'
  candidates = plan_budget.search(
    schedule_of,
    modes,
    step_s,
    num_train=num_train,
    budget_hours=values.budget_hours,
    lr_steps=config.optim.lr_steps if by_steps else (),
    has_factor=_has_factor(config),
  )
  table = lambda: plan_budget.table(
    candidates, values.budget_hours, has_table=bool(config.grid.table)
  )
  return [c._asdict() for c in candidates], table


def _has_factor(config: ml_collections.ConfigDict) -> Callable[[str], bool]:
  """Whether the epoch factor changes the length of a mode's schedule."""
  rows = grids.with_table(config).grid.table
  # Rows of a table that are no shares of the run have lengths of their own.
  return lambda mode: mode != 'table' or all('share' in row for row in rows)


def with_factor(
  config: ml_collections.ConfigDict, mode: str, factor: float
) -> ml_collections.ConfigDict:
  """Returns the config with another mode and number of epochs.

  The baseline has no epoch factor: its own epochs, and those at which its
  learning rate decays, are multiplied and rounded.
  """
  config = config.copy_and_resolve_references()
  config.grid.mode = mode
  if mode != 'table':
    config.grid.table = ()
  if mode == 'none':
    scaled = lambda epochs: plan_budget.scaled_epochs(epochs, factor)
    config.optim.total_epochs = scaled(config.optim.total_epochs)
    config.optim.lr_steps = tuple(map(scaled, config.optim.lr_steps))
  else:
    config.grid.epoch_factor = factor
  return config


def _diff(
  values: flags.FlagValues, names: Sequence[str]
) -> tuple[dict, Callable[[], str]]:
  """Compares two values of --config; overrides act on both."""
  if len(names) != 2:
    raise ConfigError(
      f'--diff compares two configs, and {len(names)} are given; write --diff '
      'kinetics400:grid=none kinetics400:grid=both'
    )
  overrides = config_flags.get_override_values(values['config'])
  configs = [
    data_setup.with_classes(
      cli.read_config(name, [f'--config.{k}={v}' for k, v in overrides.items()])
    )
    for name in names
  ]
  plans = []
  for config in configs:
    num_train, size_source = grids.dataset_size(config)
    schedule = grids.schedule(config, num_train, num_devices=values.num_devices)
    plans.append(planning.make_plan(config, schedule, size_source=size_source))
  fields = run_settings.differences(*(c.to_dict() for c in configs))
  data = {'fields': fields, 'plans': plans}
  return data, lambda: plan_text.diff(fields, *plans)
