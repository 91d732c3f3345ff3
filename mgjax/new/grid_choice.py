"""Chooses the grid schedule of a new config by predicted wall time."""

import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from mgjax import stop_signal
from mgjax.new import choose
from mgjax.progress import duration

# Multigrid is chosen where it takes so much less than the baseline.
_WORTH = 0.9
# And where it has so many steps. Recorded runs from scratch with 601 steps are
# not shown to be better than the baseline after the same time; those with 861
# are, where their programs are in the cache (experiments/pages/judged.md).
LEAST_MULTIGRID_STEPS = 800
# The coarsest clips with which recorded runs learnt (README: When to use it).
LEAST_FRAMES, LEAST_SIDE_PX = 4, 32


class PlanError(Exception):
  """The plan of a config fails; says where to read why."""


@dataclasses.dataclass(frozen=True)
class Chosen:
  """A mode of the grid schedule.

  Attributes:
    mode: Its name.
    why: Why it was chosen.
  """

  mode: str = 'none'
  why: str = (
    'The grid schedule: every step has the same grid. Nothing was measured '
    'here, so multigrid was not compared; python -m mgjax.plan with this '
    'config and --compile does it.'
  )


def multigrid_loses(
  settings: Sequence[choose.Setting], *, finetunes: bool
) -> str:
  """Why multigrid is not expected to end as accurate; '' where it may.

  It is the list of README's "When to use it", less what the wall time decides.

  Args:
    settings: Of the config.
    finetunes: Whether it starts from weights, with the recipe's cosine.
  """
  value = {setting.field: setting.value for setting in settings}
  if finetunes:
    return 'with a rate that falls along a cosine the recorded runs lost by it'
  # The coarsest grid has half the side and a quarter of the frames.
  frames, side = value['data.num_frames'] // 4, value['data.crop_px'] // 2
  if frames < LEAST_FRAMES or side < LEAST_SIDE_PX:
    return (
      f'its coarsest clips would have {frames} frames of {side} x {side} '
      f'pixels, and the recorded runs lost by fewer than {LEAST_FRAMES} of '
      f'{LEAST_SIDE_PX} x {LEAST_SIDE_PX}'
    )
  return ''


def compare(
  config: str, minutes: float, num_devices: int = 1, loses: str = ''
) -> Chosen:
  """Chooses the grid schedule by the wall time that is predicted.

  Args:
    config: Path of the config file.
    minutes: What measuring may take: then it ends, and nothing is compared. 0:
      what was measured before counts.
    num_devices: Devices that share each batch.
    loses: Why multigrid is not to be chosen however fast it is; '': it may be.

  Raises:
    PlanError: The plan of the config fails.
  """
  # In a process of its own: a compilation can be ended in no other way.
  with (
    stop_signal.listening() as stop,
    tempfile.TemporaryDirectory() as folder,
    stop.at_end(lambda _: shutil.rmtree(folder)),
  ):
    output = pathlib.Path(folder) / 'plan.json'
    command = [
      *(sys.executable, '-m', 'mgjax.plan', f'--config={config}'),
      *('--format=json', f'--output={output}'),
      f'--num_devices={num_devices}',
    ]
    if minutes:
      print('Timing the steps of this network on this machine:', flush=True)
      command.append('--compile')
    try:
      _run(command, 60 * minutes or None, stop)
    except subprocess.TimeoutExpired:
      return Chosen(
        why='The grid schedule: every step has the same grid. Timing took '
        f'longer than the {minutes:g} minutes of --measure_minutes, so '
        'multigrid was not compared.'
      )
    except subprocess.CalledProcessError as error:
      if error.returncode < 0:  # As for lack of memory; nothing is wrong here.
        return Chosen(
          why='The grid schedule: every step has the same grid. Timing was '
          f'ended by {signal.Signals(-error.returncode).name}, so multigrid '
          'was not compared.'
        )
      raise PlanError(
        f'as the lines above say (exit code {error.returncode})'
      ) from error
    return choose_grid(json.loads(output.read_text())['wall_time'], loses)


def _run(
  command: Sequence[str], timeout_s: float | None, stop: stop_signal.Listener
) -> None:
  """Runs a command, which does not outlive this process.

  Raises:
    subprocess.TimeoutExpired: It took longer; it is ended.
    subprocess.CalledProcessError: It failed.
  """
  is_ending = threading.Event()

  def end(number: int) -> None:
    is_ending.set()
    child.kill()

  with subprocess.Popen(command) as child:
    with stop.at_end(end):
      try:
        code = child.wait(timeout_s)
      except BaseException:
        child.kill()
        raise
      if is_ending.is_set():  # With this process: it is no failure.
        threading.Event().wait()
  if code:
    raise subprocess.CalledProcessError(code, command)


def choose_grid(wall_time: dict[str, Any] | None, loses: str = '') -> Chosen:
  """Chooses a mode, and says why.

  Args:
    wall_time: That of a plan; None: nothing is known.
    loses: As for `compare`.
  """
  if not wall_time or 'none' not in wall_time['modes']:
    return Chosen()
  seconds = {m: found['total_s'] for m, found in wall_time['modes'].items()}
  steps = {m: found['steps'] for m, found in wall_time['modes'].items()}
  long_enough = ['none'] + [
    m
    for m in seconds
    if m != 'none' and steps[m] >= LEAST_MULTIGRID_STEPS and not loses
  ]
  fastest = min(long_enough, key=seconds.get)
  mode = fastest if seconds[fastest] <= _WORTH * seconds['none'] else 'none'
  verdict = f'multigrid pays here, as grid={mode}'
  if mode == 'none':
    verdict = 'multigrid does not pay here'
    if loses:
      verdict += f': {loses}'
    elif len(long_enough) < len(seconds):
      verdict += (
        f': with fewer than {LEAST_MULTIGRID_STEPS} steps the recorded runs '
        'are not shown to be better than without it after the same time'
      )
  listed = ', '.join(
    f'{m} {duration(s)} ({steps[m]:,} steps)' for m, s in seconds.items()
  )
  return Chosen(
    mode,
    f'The grid schedule: {verdict}. Predicted wall time of the training on '
    f'{wall_time["num_devices"]} x {wall_time["device"]}, compilation '
    f'included: {listed}. Grids that were not measured count by their '
    'multiply-adds, and as long to compile as those that were.',
  )
