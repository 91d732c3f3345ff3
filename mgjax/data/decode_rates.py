"""Clips per second that this machine decodes, and what a run needs."""

import contextlib
import functools
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from mgjax import environment
from mgjax.config import saved
from mgjax.data import read_ahead
from mgjax.data.read_ahead import Workers
from mgjax.data.stream import TrainStream
from mgjax.grids.schedule import Grid, GridSchedule, Phase
from mgjax.planning import step_seconds
from mgjax.setup import clip_costs, grids, planning
from mgjax.setup import data as data_setup


class Draw(NamedTuple):
  """What determines the cost of a clip: its shape and what it draws from."""

  T: int  # Frames.
  H: int  # Rows of the crop.
  W: int  # Columns of the crop.
  stride_frames: tuple[int, int]  # Least and greatest frame stride.
  jitter_px: tuple[int, int]  # Least and greatest short side, resized.


def draws_of(phase: Phase) -> list[Draw]:
  """Returns what the clips of a phase are drawn from, by step of its cycle."""
  return [
    Draw(*grid[:3], phase.stride_frames, jitter)
    for grid, jitter in zip(phase.cycle, phase.jitter_px, strict=True)
  ]


def measure(
  train_stream: TrainStream, draws: list[Draw], *, num_clips: int
) -> dict[Draw, dict[str, float]]:
  """Decodes clips of each kind.

  Args:
    train_stream: That of the run.
    draws: What to measure.
    num_clips: Clips that each worker decodes.

  Returns:
    'cpu_ms' of one clip; 'one_worker' and 'all_workers', clips per second of
    wall clock.
  """
  rates = {}
  for draw in draws:
    make = functools.partial(_make_batch, train_stream, draw)
    make(1, 0)  # Opens files.
    cpu, wall = time.process_time(), time.perf_counter()
    for number in range(num_clips):
      make(1, number)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    batch_size = -(-num_clips // 4)
    rates[draw] = {
      'cpu_ms': 1e3 * cpu / num_clips,
      'one_worker': num_clips / wall,
      'all_workers': batch_size
      * _batches_per_s(
        functools.partial(make, batch_size), train_stream.workers
      ),
    }
  return rates


def _make_batch(
  train_stream: TrainStream, draw: Draw, batch_size: int, number: int
) -> dict:
  """Makes batch `number` of those that have one size."""
  return train_stream.clips_from(
    number * batch_size,
    Grid(*draw[:3], batch_size),
    stride_frames=draw.stride_frames,
    jitter_px=draw.jitter_px,
  )


def _batches_per_s(make: Callable[[int], dict], workers: Workers) -> float:
  """Batches per second as training gets them, once its workers are at work."""
  # While processes start, some get ahead of others: what they have made until
  # then would come in no time.
  untimed = workers.num_ahead + workers.num_together
  timed = 4 * workers.num_together
  batches = read_ahead.read_ahead(make, range(untimed + timed), workers)
  with contextlib.closing(batches):
    for _ in itertools.islice(batches, untimed):
      pass
    begin = time.perf_counter()
    for _ in itertools.islice(batches, timed):
      pass
    # Without the end of the processes.
    return timed / (time.perf_counter() - begin)


def report(
  schedule: GridSchedule,
  rates: dict[Draw, dict[str, float]],
  step_s: dict[Grid, float] | None,
  *,
  data: str,
  workers: Workers,
  copies: tuple[str, ...],
  num_cpus: int,
  prepared: bool,
) -> dict[str, Any]:
  """What was measured, and what it means for each phase, as JSON data.

  Args:
    schedule: Of the run.
    rates: Of `measure`, for every draw of the schedule.
    step_s: Of `step_seconds`; None: not known.
    data: Name of the data set.
    workers: That decoded it.
    copies: Names of the smaller copies of the data set.
    num_cpus: Of this machine.
    prepared: Whether the data set is one of `mgjax.data.prepare`, which could
      write smaller ones.
  """
  phases = []
  for phase in schedule.phases:
    draws = draws_of(phase)
    # All of a mean step.
    num_clips = _mean(phase, [grid.batch for grid in phase.cycle])
    decode_s = _mean(
      phase,
      [
        grid.batch / rates[draw]['all_workers']
        for grid, draw in zip(phase.cycle, draws, strict=True)
      ],
    )
    row = {
      'base': phase.base._asdict(),
      'end_epoch': phase.end_epoch,
      'clips_per_s': num_clips / decode_s,
    }
    if step_s:
      device_s = _mean(phase, [step_s[grid] for grid in phase.cycle])
      row |= {
        'step_ms': 1e3 * device_s,
        'clips_per_s_needed': num_clips / device_s,
        'wait_fraction': max(0.0, 1 - device_s / decode_s),
        # Less a rounding error of the division.
        'workers_needed': math.ceil(
          workers.num_together * decode_s / device_s - 1e-6
        ),
      }
    phases.append(row)
  result = {
    'data': data,
    'copies': list(copies),
    'num_workers': workers.num_threads,
    'worker_processes': workers.worker_processes,
    'num_cpus': num_cpus,
    'grids': [{**draw._asdict(), **rate} for draw, rate in rates.items()],
    'phases': phases,
  }
  if step_s:
    needed = max(phase['workers_needed'] for phase in phases)
    # A set of another origin, or of a form that is not a copy's, gets none.
    form = re.fullmatch(r'[^/]+(?:/short(\d+))?', data) if prepared else None
    short_px = int(form[1] or 0) if form else None
    result['advice'] = _advice(
      needed, workers, num_cpus, data.partition('/')[0], short_px, bool(copies)
    )
  return result


def _mean(phase: Phase, values: Sequence[int | float]) -> float:
  """Mean over the steps of a phase of a value that each grid has."""
  return math.fsum(
    share * value for share, value in zip(phase.shares, values, strict=True)
  )


def _advice(
  needed: int,
  workers: Workers,
  num_cpus: int,
  family: str,
  short_px: int | None,
  has_copies: bool,
) -> list[str]:
  """What would keep the accelerator busy, the cheapest first.

  Args:
    needed: Workers that would be as fast as the accelerator.
    workers: Those there are.
    num_cpus: Of this machine.
    family: NAME of the data set NAME[/CONFIG].
    short_px: Short side of its videos; 0: they are stored as they were; None:
      `mgjax.data.prepare` has nothing smaller to offer.
    has_copies: Whether it has smaller copies.
  """
  if needed <= workers.num_together:
    return ['no phase waits for data']
  # Each worker makes a batch of its own.
  count = min(needed, num_cpus)
  flag = f'--config.data.num_workers={count}'
  if workers.prefetch_batches < count:
    flag += f' --config.data.prefetch_batches={count}'
  if needed <= num_cpus:
    return [flag]
  advice = []
  if workers.num_together < num_cpus:
    advice.append(f'{flag}, all the CPUs there are')
  prepare = 'python -m mgjax.data.prepare --short_side_px'
  if short_px == 0:
    advice.append(
      f'short groups of pictures: {prepare}=256 --name={family}/short256, then '
      f'--config.data.name={family}/short256'
    )
  if short_px is not None and not has_copies and not 0 < short_px <= 192:
    advice.append(
      f'a smaller copy for coarse grids: {prepare}=192 '
      f'--name={family}/short192; it is used by itself'
    )
  advice.append(
    f'hosts: decoding as fast as the accelerator takes {needed} workers, '
    f'{math.ceil(needed / num_cpus)} machines with {num_cpus} CPUs'
  )
  return advice


def format_report(result: dict[str, Any]) -> str:
  """The report as text."""
  workers = f'{result["num_workers"]} workers'
  if result['worker_processes']:
    workers += f' in {result["worker_processes"]} processes'
  form = '{:>14}  {:>6}  {:>7}  {:>7}  {:>17}  {:>11}'
  lines = [
    f'{result["data"]}, copies: {", ".join(result["copies"]) or "none"}; '
    f'{workers} on {result["num_cpus"]} CPUs',
    '',
    form.format(
      *('grid', 'stride', 'jitter', 'CPU ms', 'clips/s, 1 worker'),
      'all workers',
    ),
  ]
  for g in result['grids']:
    ranges = (
      '-'.join(map(str, dict.fromkeys(g[name])))
      for name in ('stride_frames', 'jitter_px')
    )
    rates = (f'{g[n]:.1f}' for n in ('cpu_ms', 'one_worker', 'all_workers'))
    lines.append(
      form.format(f'{g["T"]} x {g["H"]} x {g["W"]}', *ranges, *rates)
    )
  lines.append('')
  for i, p in enumerate(result['phases'], start=1):
    base = p['base']
    text = (
      f'phase {i}, {base["batch"]} x {base["T"]} x {base["H"]} x {base["W"]}, '
      f'to epoch {p["end_epoch"]:g}: {p["clips_per_s"]:.1f} clips/s'
    )
    if 'step_ms' in p:
      text += f' of {p["clips_per_s_needed"]:.1f} needed: '
      text += (
        f'the accelerator waits {p["wait_fraction"]:.0%} of the time; '
        f'{p["workers_needed"]} workers'
        if p['wait_fraction'] > 0
        else 'enough'
      )
    lines.append(text)
  advice = f'Give {step_seconds.NAMES} to learn which phases would wait.'
  return '\n'.join([*lines, '', *result.get('advice', [advice])])


def main(values: flags.FlagValues) -> None:
  """Measures what the flags ask for, and prints the report."""
  # Counting multiply-adds takes no accelerator.
  jax.config.update('jax_platforms', 'cpu')
  config = data_setup.with_classes(values.config)
  planning.check_network(config, [grids.full_grid(config)])
  source = data_setup.source(config, 'train')
  schedule = grids.schedule(config, len(source))
  full = grids.full_grid(config)
  gmacs = clip_costs.gmacs_per_clip(config, {full, *schedule.grids})
  step_s = step_seconds.step_seconds(values, gmacs, full, saved.as_json(config))
  draws = dict.fromkeys(d for p in schedule.phases for d in draws_of(p))
  train_stream = data_setup.train_stream(config, schedule, source)
  rates = measure(train_stream, list(draws), num_clips=values.num_clips)
  result = report(
    schedule,
    rates,
    step_s,
    data=config.data.name,
    workers=train_stream.workers,
    copies=tuple(c.name for c in source.copies.copies) if source.copies else (),
    num_cpus=environment.num_cpus(),
    prepared=source.manifest_sha256 is not None,
  )
  if values.format == 'json':
    print(json.dumps(result, indent=1))
  else:
    print(format_report(result))
