"""The command: plans a data set, writes what is missing of it, and reports."""

import collections
import itertools
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from mgjax.data.prepare import beam, layout, manifest, resume, workers
from mgjax.data.prepare.plan import Plan, make_plan
from mgjax.data.prepare.settings import Settings, of_flags
from mgjax.data.prepare.shards import read_deaths
from mgjax.errors import ConfigError

_MAX_NAMED = 20  # Classes, and damaged videos, that are told one by one.


def main(values: flags.FlagValues) -> None:
  """Prepares the data set that the flags describe (__main__.py)."""
  prepare(of_flags(values))


def prepare(settings: Settings, *, progress: bool = True) -> pathlib.Path:
  """Writes the data set, or what is still missing of it.

  Args:
    settings: What to write and where.
    progress: Whether to show a progress bar and to report on stderr.

  Returns:
    Folder for `tfds.builder_from_directory`.

  Raises:
    ConfigError: A setting cannot work, or the folder holds a data set that
      was made from something else.
    RunError: Too many videos are damaged, a file or the memory is out of reach,
      or a worker died.
  """

  def report(message: str) -> None:
    if progress:
      print(message, file=sys.stderr)

  plan = make_plan(settings)
  if resume.is_complete(plan):
    report(f'{plan.name} is already prepared: {plan.folder}')
    return plan.folder
  _check_missing(plan, settings)
  with layout.locked(plan.folder):
    todo = resume.clean(plan)
    if plan.misnamed:
      log = plan.folder / layout.PARTS / layout.QUARANTINED
      layout.append(log, manifest.misnamed_records(plan))
      resume.check_bad(len(plan.misnamed), plan, settings)
    if len(todo) < len(plan.shards):
      report(f'{len(plan.shards) - len(todo)} shards are done already')
    if settings.beam_runner:
      beam.write(todo, settings)
    else:
      while not workers.write(plan, todo, settings, progress=progress):
        death = read_deaths(plan.folder)[-1]
        report(f'a worker died at {death["file"]} ({death["cause"]}); going on')
        todo = resume.clean(plan)
    summary = manifest.finish(plan, settings)
  for line in _report_lines(plan, summary, settings):
    report(line)
  return plan.folder


def _check_missing(plan: Plan, settings: Settings) -> None:
  """Refuses a split too much of which has no file: --videos may be wrong.

  Raises:
    ConfigError: Names the split, the numbers, and how to accept them.
  """
  there = collections.Counter()
  for shard in plan.shards:
    there[shard.split] += len(shard.items)
  missing = collections.Counter(video.split for video in plan.missing)
  for split, count in missing.items():
    annotated = there[split] + count
    if count > settings.max_missing_fraction * annotated:
      first = next(v for v in plan.missing if v.split == split)
      # Rounded up: the share that is proposed must be enough.
      share = math.ceil(100 * count / annotated) / 100
      raise ConfigError(
        f'--videos: {count} of the {annotated} videos of the {split} split '
        f'have no file under {settings.videos}, such as {first.names[0]}.*, '
        f'more than --max_missing_fraction={settings.max_missing_fraction:g} '
        f'allows; get them, or accept it with --max_missing_fraction={share:g}.'
      )


def _class_lines(summary: dict[str, Any]) -> Iterator[str]:
  """Yields the videos per class and split, and what a class lacks."""
  classes = {
    name: {split: counts['stored'] for split, counts in splits.items()}
    for name, splits in summary['classes'].items()
  }
  for name, counts in itertools.islice(classes.items(), _MAX_NAMED):
    found = ', '.join(f'{split} {count}' for split, count in counts.items())
    yield f'  {name}: {found}'
  if len(classes) > _MAX_NAMED:
    more = len(classes) - _MAX_NAMED
    yield f'  and {more} more classes; {layout.SUMMARY} lists them'
  for split in summary['splits']:
    if empty := [name for name, counts in classes.items() if not counts[split]]:
      more = ', …' if len(empty) > _MAX_NAMED else ''
      yield (
        f'{split}: no video of {len(empty)} classes '
        f'({", ".join(empty[:_MAX_NAMED])}{more})'
      )
  if 'validation' not in summary['splits']:
    yield 'there are no validation videos: a training on it cannot be evaluated'


def _report_lines(
  plan: Plan, summary: dict[str, Any], settings: Settings
) -> Iterator[str]:
  """Yields what a person wants to know at the end, line by line."""
  for split, counts in summary['splits'].items():
    yield (
      f'{split}: {counts["stored"]} videos stored ({counts["gib"]:.2f} GiB, '
      f'{counts["hours"]:.1f} h), {counts["missing"]} missing, '
      f'{counts["quarantined"]} damaged'
    )
  yield from _class_lines(summary)
  for video in summary['quarantined'][:_MAX_NAMED]:
    yield f'damaged and left out: {video["file"]}: {video["reason"]}'
  if (more := len(summary['quarantined']) - _MAX_NAMED) > 0:
    yield f'and {more} more damaged videos; {layout.SUMMARY} lists them'
  lists = {
    f'left out {len(plan.duplicates)} videos whose id was there already': [
      video.file or video.id for video in plan.duplicates
    ]
  }
  for why, paths in plan.unused.items():
    lists[f'did not use {len(paths)} files ({why})'] = paths
  for what, names in lists.items():
    if names:
      more = ', …' if len(names) > 3 else ''
      yield f'{what}: {", ".join(names[:3])}{more}; {layout.SUMMARY} lists them'
  is_mini = settings.classes or settings.num_classes is not None
  published = summary['published_num_classes']
  if published and not is_mini and summary['num_classes'] not in published:
    numbers = ' or '.join(map(str, published))
    yield f'{summary["num_classes"]} classes; published are {numbers}'
  yield f'Prepared {plan.folder}; use --config.data.name={plan.name}'
