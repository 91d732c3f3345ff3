"""What a run leaves behind when a step goes wrong: enough to run it again.

It is a folder failure-STEP laid out like that of a run (the bundle), which
mgjax.replay takes.
"""

import json
from typing import NoReturn

import jax
import jaxlib
from etils import epath

from mgjax import cli, files
from mgjax.errors import ConfigError, RunError
from mgjax.grids.schedule import GridSchedule
from mgjax.hosts.peers import Peers
from mgjax.run.checkpoint_manager import Checkpoints


def fail(
  what: str,
  *,
  step: int,
  ids: list[str],
  schedule: GridSchedule,
  settings: str,
  workdir: epath.Path,
  checkpoints: Checkpoints,
  peers: Peers,
) -> NoReturn:
  """Writes what replays a step that is not finite, and stops the run.

  Args:
    what: What is not finite: the first words of the message.
    step: The step.
    ids: Of its clips.
    schedule: The run's schedule.
    settings: The run's settings, the text of its config.json.
    workdir: The bundle becomes its folder failure-STEP.
    checkpoints: Of the run; all of them are from before the step.
    peers: Its processes, all of which must come here.

  Raises:
    RunError: Always.
  """
  grid, lr = schedule(step), schedule.lr(step)
  folder = workdir / f'failure-{step}'
  write(
    folder,
    settings,
    checkpoints,
    {
      'step': step,
      'what': what,
      'lr': lr,
      'grid': grid._asdict(),
      'ids': ids,
    },
    peers,
  )
  last = max(checkpoints.steps(), default=0)
  raise RunError(
    f'{what} of step {step} is not finite (grid {grid}, learning rate {lr:g}). '
    f'The newest checkpoint is of step {last}; lower optim.base_lr, raise '
    f'optim.warmup_epochs or set optim.clip_norm. {cli.interpreter()} -m '
    f'mgjax.replay --bundle={folder} runs the step again.'
  )


def write(
  folder: epath.Path,
  settings: str,
  checkpoints: Checkpoints,
  failure: dict,
  peers: Peers,
) -> None:
  """Writes a bundle; every process returns once it is complete.

  A run is a function of its step, so a checkpoint from before the failure is
  all that is needed to reach the failing step again, with the same clips.

  Args:
    folder: Where; laid out like the folder of a run: config.json,
      failure.json and checkpoints/, which holds the newest checkpoint from
      before the failing step, if there is one.
    settings: The run's settings, the text of its config.json.
    checkpoints: The run's checkpoints.
    failure: JSON record of the failing step, with 'step' and 'ids'.
    peers: The processes of the run; the first one writes.
  """
  checkpoints.wait()
  if peers.is_first:
    if folder.exists():
      folder.rmtree()
    (folder / 'checkpoints').mkdir(parents=True)
    before = [s for s in checkpoints.steps() if s <= failure['step']]
    for step in before[-1:]:
      source = checkpoints.directory / str(step)
      _copy_tree(source, folder / 'checkpoints' / str(step))
    (folder / 'config.json').write_text(settings)
    record = {
      **failure,
      'backend': jax.devices()[0].platform,
      'num_devices': jax.device_count(),
      'jax': jax.__version__,
      'jaxlib': jaxlib.__version__,
    }
    # Last: a folder with this file is complete.
    (folder / 'failure.json').write_text(json.dumps(record, indent=1) + '\n')
  # A process that fails ends the others: not before all of it is there.
  peers.exchange(None)


def _copy_tree(source: epath.Path, target: epath.Path) -> None:
  """Copies a folder, on a disk or in an object store."""
  target.mkdir()
  for path in source.iterdir():
    if path.is_dir():
      _copy_tree(path, target / path.name)
    else:
      path.copy(target / path.name)


def read_failure(folder: epath.Path) -> dict:
  """Reads the record of the failing step."""
  path = folder / 'failure.json'
  failure = files.read_json(path)
  if type(failure.get('step')) is not int or 'ids' not in failure:
    raise ConfigError(f'{path} is not the record of a failed step')
  return failure
