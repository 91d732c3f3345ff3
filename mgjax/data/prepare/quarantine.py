"""Damaged videos: a data set does without a few, and says which and why."""

import pathlib
from collections.abc import Iterable
from typing import Any

from mgjax.data.prepare.annotations import Annotated
from mgjax.data.prepare.folder import PARTS, QUARANTINED, append
from mgjax.data.prepare.plan import NOT_UTF8, Plan
from mgjax.data.prepare.settings import Settings
from mgjax.errors import RunError


def log(folder: pathlib.Path, records: Iterable[dict[str, Any]]) -> None:
  """Notes damaged videos at once: a run that stops should say why.

  Args:
    folder: Folder of the data set.
    records: Their lines of the manifest.
  """
  append(folder / PARTS / QUARANTINED, records)


def check(num_bad: int, plan: Plan, settings: Settings) -> None:
  """Refuses too many damaged videos: something else may be wrong.

  Args:
    num_bad: Damaged videos so far.
    plan: Has the number of all videos.
    settings: Has the share that is tolerated.

  Raises:
    RunError: There are more; says how to accept them.
  """
  if num_bad > settings.max_bad_fraction * plan.num_items:
    raise RunError(
      f'{num_bad} of {plan.num_items} videos are damaged, more than '
      f'--max_bad_fraction={settings.max_bad_fraction:g} allows; see '
      f'{plan.folder / PARTS / QUARANTINED}. Start again with a larger '
      'fraction to continue without them.'
    )


def misnamed_records(plan: Plan) -> list[dict[str, Any]]:
  """Returns the lines of the manifest of videos whose names are not UTF-8."""
  return [
    record_without_shard(
      video, status='quarantined', file=video.file, reason=NOT_UTF8
    )
    for video in plan.misnamed
  ]


def record_without_shard(video: Annotated, **why: str) -> dict[str, Any]:
  """Returns the line of the manifest of a video that is in no shard.

  Args:
    video: The video.
    **why: The status, and the fields that go with it.
  """
  labels = {a.label for a in video.actions} or {video.label} - {None}
  return {
    'id': video.id,
    'split': video.split,
    'labels': sorted(labels),
    **why,
  }
