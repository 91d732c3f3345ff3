"""Makes summary.json of a run, and its closing words."""

import shlex
import time
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from mgjax import cli, environment
from mgjax.evaluation import results
from mgjax.grids.schedule import GridSchedule
from mgjax.planning import wall_time, wall_time_text
from mgjax.run.clock import Times
from mgjax.step.step_cache import StepCache


def summarize(
  config: ml_collections.ConfigDict,
  schedule: GridSchedule,
  run_plan: dict,
  programs: StepCache,
  times: Times,
  result: dict,
  bad_videos: Mapping[str, str],
  *,
  startup_s: float,
) -> dict:
  """What a record keeps of a finished run: summary.json.

  Args:
    config: The run's settings.
    schedule: Its grids.
    run_plan: Its plan.json.
    programs: Those that this launch has compiled.
    times: Seconds of the run, those of earlier launches included.
    result: Of its last evaluation.
    bad_videos: Reason by name of the training videos that had to be replaced.
    startup_s: Seconds from the start of this launch to its first step.

  Returns:
    JSON data. Times are in seconds, accuracies in percent; `cpu_s`,
    `startup_s`, `compile_s` and the counts of programs are of this launch, the
    other times of the whole run.
  """
  return {
    'mode': config.grid.mode,
    'seed': config.seed,
    **{k: result[k] for k in results.METRICS if k in result},
    'num_videos': result['num_videos'],
    'num_scored': result['num_scored'],
    'num_lost_views': result['num_lost_views'],
    'steps': schedule.total_steps,
    'epochs': schedule.total_epochs,
    'clips': schedule.total_clips,
    'num_grids': len(schedule.grids),
    'num_compiled': programs.compiled('train'),
    'num_from_disk': sum(p.kind == 'train' for p in programs.from_disk),
    # Of all kinds.
    'programs': {
      'compiled': len(programs.compile_s.keys() - programs.from_disk),
      'from_disk': len(programs.from_disk),
    },
    'baseline_steps': run_plan['baseline']['steps'],
    'predicted_speedup': run_plan['speedup'],
    'startup_s': startup_s,
    # Of all threads of this launch, evaluation and compilation included; less
    # sensitive than the other times to what else the machine does.
    'cpu_s': time.process_time(),
    **vars(times),
    'compile_s': sum(programs.compile_s.values()),
    'compile_wait_s': times.compile_s,
    'train_s': times.train_s,
    'wait_fraction': times.wait_fraction,
    'wall_time': {
      'run': times.breakdown,
      # As the plan said before the first step; None: it did not know.
      'predicted': (run_plan.get('wall_time') or {}).get('run'),
    },
    'bad_videos': bad_videos,
    'environment': environment.describe(),
  }


def tell(
  summary: dict,
  workdir: epath.PathLike,
  config_arg: str,
  overrides: Mapping[str, Any] | None = None,
) -> str:
  """The closing words of a run.

  Args:
    summary: What `train` returns.
    workdir: The run's folder.
    config_arg: Value of --config.
    overrides: Fields of the config that the command line set, by dotted name.
  """
  s = summary
  programs = f'{s["num_compiled"]} compilations'
  if s['num_compiled'] < s['num_grids']:  # The launch went on with a run.
    programs = f'{s["num_compiled"]} of them compiled by this launch'
  file, _, arguments = config_arg.partition(':')
  other = 'both' if s['mode'] == 'none' else 'none'
  kept = [a for a in arguments.split(',') if a and not a.startswith('grid=')]
  # A config file of the user's own may take no such argument.
  mode = [f'--config.grid.mode={other}']
  if any(a.startswith('grid=') for a in arguments.split(',')):
    kept, mode = [f'grid={other}', *kept], []
  other_config = f'--config={":".join([file, *filter(None, [",".join(kept)])])}'

  def command(name: str, *words: str) -> str:
    return f'{cli.interpreter()} -m mgjax.{name} {shlex.join(words)}'

  fields = {f'--config.{k}': v for k, v in (overrides or {}).items()}
  given = [f'{name}={value}' for name, value in fields.items()]
  # Nor does another mode take a table.
  other_given = [
    g
    for g in given
    if not g.startswith(('--config.grid.mode=', '--config.grid.table='))
  ]
  to = f'--workdir={workdir}'
  return f"""
{results.describe(s)}
{s['num_grids']} distinct grids, {programs} \
({s['num_from_disk']} of them read from the cache on disk)
{s['compile_s']:.0f} s compiling in the background ({s['compile_wait_s']:.0f} s\
 waited for), {s['data_s']:.0f} s waiting for data, {s['step_s']:.0f} s\
 stepping, {s['eval_s']:.0f} s evaluating
{s['steps']} steps ({s['baseline_steps']} without multigrid), {s['clips']} clips
{_wall_time(s)}
checkpoint   {workdir}/checkpoints/{s['steps']}
metrics      {workdir}/metrics.jsonl
TensorBoard  {workdir}/events.out.tfevents.*
picture      {workdir}/report.png

Next:
  {command('predict', to, 'VIDEO.mp4')}
  {command('evaluate', to, '--config.eval.num_views=3')}
  {command('train', other_config, *mode, f'{to}-{other}', *other_given)}"""


def _wall_time(summary: dict) -> str:
  """Times of the run, and those that were predicted, as lines of text."""
  if 'wall_time' not in summary:  # Of an earlier version.
    return ''
  found = summary['wall_time']
  rows = {'this run': found['run']}
  if found['predicted']:
    rows['predicted'] = found['predicted']
  columns = (*wall_time.PARTS, 'data', 'other')
  return '\n'.join(['', *wall_time_text.table(rows, columns), ''])
