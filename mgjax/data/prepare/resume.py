"""What the command has done so far, in this run and in earlier ones."""

import json
import os
import pathlib
import shutil
from typing import Any

from mgjax import files
from mgjax.data.prepare import layout
from mgjax.data.prepare.plan import Item, Plan, Shard
from mgjax.data.prepare.settings import Settings
from mgjax.data.suffixes import FRAME_CODECS, suffix_of
from mgjax.errors import ConfigError, RunError

_BIG_SET = 1000  # Videos.


def is_complete(plan: Plan) -> bool:
  """Whether the data set is written.

  Raises:
    ConfigError: Its folder holds another one.
  """
  if not (plan.folder / layout.INFO).exists():
    return False
  path = plan.folder / layout.SUMMARY
  summary = files.read_json(path) if path.exists() else {}
  if summary.get('plan_sha256') != plan.fingerprint():
    raise ConfigError(
      f'{plan.folder} holds a data set made from other files or settings; '
      'choose another --name or --out, or delete it.'
    )
  return True


def read_part(shard: Shard) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Reads a shard's part of the manifest.

  Returns:
    What identifies the shard, and the lines of its videos.

  Raises:
    OSError: It cannot be read.
    ValueError: It is damaged.
  """
  with shard.part.open(encoding='utf-8') as part:
    header, *records = map(json.loads, part)
  return header, records


def is_written(shard: Shard) -> bool:
  """Whether an earlier run wrote the shard from the same files."""
  try:
    header, records = read_part(shard)
    size = (pathlib.Path(shard.folder) / shard.file_name).stat().st_size
  except (FileNotFoundError, ValueError):
    return False  # ValueError: half of a part, after the power went.
  expected = {'fingerprint': shard.fingerprint(), 'num_bytes': size}
  return (
    header == expected
    and len(records) == len(shard.items)
    # Earlier versions did not try random access.
    and all('frames_md5' in r for r in records if r['status'] == 'stored')
  )


def clean(plan: Plan) -> list[Shard]:
  """Removes files that do not belong to the plan.

  Args:
    plan: The plan, whose folder is locked.

  Returns:
    The shards that are still to be written.

  Raises:
    ConfigError: The disk is too small for them.
  """
  todo = [shard for shard in plan.shards if not is_written(shard)]
  keep = {layout.PARTS, layout.LOCK, layout.QUARANTINED, layout.DEATHS}
  for shard in set(plan.shards) - set(todo):
    keep |= {shard.file_name, shard.part.name}
  for path in (*plan.folder.iterdir(), *(plan.folder / layout.PARTS).iterdir()):
    if path.name not in keep:
      shutil.rmtree(path) if path.is_dir() else path.unlink()
  # How large transcoded videos become is not known before.
  if not plan.shards[0].encoding.short_side_px:
    needed = sum(_num_bytes(item, s.videos) for s in todo for item in s.items)
    free = shutil.disk_usage(plan.folder).free
    if needed > free:
      raise ConfigError(
        f'--out: {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB '
        f'are free in {plan.folder}.'
      )
  return todo


def check_bad(num_bad: int, plan: Plan, settings: Settings) -> None:
  """Refuses too many damaged videos: something else may be wrong.

  Args:
    num_bad: Damaged videos so far.
    plan: Has the number of all videos.
    settings: Has the share that is tolerated.

  Raises:
    RunError: There are more; says how to accept them.
  """
  # A share of a small set is less than a file, and a file or two say nothing:
  # there the number that a thousand videos may have counts, up to an eighth,
  # or one.
  share, num_videos = settings.max_bad_fraction, plan.num_items
  few = min(share * _BIG_SET, max(1, num_videos / 8))
  if num_bad > max(share * num_videos, few):
    log = plan.folder / layout.PARTS / layout.QUARANTINED
    raise RunError(
      f'{num_bad} of {plan.num_items} videos are damaged, more than '
      f'--max_bad_fraction={settings.max_bad_fraction:g} allows; see '
      f'{log}. Start again with a larger fraction to continue without them.'
    )


def _num_bytes(item: Item, videos: str) -> int:
  """Returns the bytes that a video will take.

  All frames of a folder count as large as one of them: asking for the size of
  each would take minutes on a network disk.

  Args:
    item: The video.
    videos: Folder that its path starts from.
  """
  path = pathlib.Path(videos, item.path)
  if not path.is_dir():
    return item.size
  with os.scandir(path) as entries:
    frames = (e for e in entries if suffix_of(e.name) in FRAME_CODECS)
    sizes = (frame.stat().st_size for frame in frames)
    return item.size * next(sizes, 0)
