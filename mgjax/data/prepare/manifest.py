"""What a finished data set says of itself: manifest and summary.

The manifest has a line for every annotated video. The summary counts them, and
quotes the manifest's hash, which evaluation records repeat: two results are of
the same data if they have the same hash.
"""

import collections
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import av
import tensorflow_datasets as tfds

from mgjax import files
from mgjax.data.prepare import layout, publishers, resume, tfds_files
from mgjax.data.prepare.annotations import Annotated
from mgjax.data.prepare.plan import NOT_UTF8, Plan
from mgjax.data.prepare.settings import Settings
from mgjax.errors import RunError

# How many unused files of a kind the summary names: there may be millions.
_MAX_NAMED = 1000


def finish(plan: Plan, settings: Settings) -> dict[str, Any]:
  """Writes all but the shards: manifest, summary and TFDS's description.

  The description comes last, since it makes the data set complete; then the
  parts are removed.

  Args:
    plan: The plan of the data set, all of whose shards are written.
    settings: What was wanted.

  Returns:
    The summary.

  Raises:
    RunError: Too many videos are damaged, or all of a split.
  """
  records = []
  lengths = collections.defaultdict(list)
  num_bytes = collections.Counter()
  for shard in plan.shards:
    header, lines = resume.read_part(shard)
    records.extend(lines)
    lengths[shard.split].append(_count(lines, status='stored'))
    num_bytes[shard.split] += header['num_bytes']
  # On Beam nobody has counted before.
  num_bad = _count(records, status='quarantined') + len(plan.misnamed)
  resume.check_bad(num_bad, plan, settings)
  for split, shard_lengths in lengths.items():
    if not sum(shard_lengths):
      raise RunError(f'every video of the {split} split is damaged.')
  records += [
    _record_without_shard(
      video, status='missing', reason=f'no file {video.names[0]}.*'
    )
    for video in plan.missing
  ]
  records += misnamed_records(plan)
  records.sort(key=lambda r: (r['split'], r['id']))
  manifest = layout.json_lines(records)
  files.write_text(plan.folder / layout.MANIFEST, manifest)
  summary = _summarize(plan, settings, records)
  summary['manifest_sha256'] = hashlib.sha256(manifest.encode()).hexdigest()
  files.write_text(
    plan.folder / layout.SUMMARY,
    json.dumps(summary, indent=2, ensure_ascii=False),
  )
  tfds_files.write(plan, settings.dataset, lengths, num_bytes)
  shutil.rmtree(plan.folder / layout.PARTS)
  return summary


def misnamed_records(plan: Plan) -> list[dict[str, Any]]:
  """Returns the lines of the manifest of videos whose names are not UTF-8."""
  return [
    _record_without_shard(
      video, status='quarantined', file=video.file, reason=NOT_UTF8
    )
    for video in plan.misnamed
  ]


def _record_without_shard(video: Annotated, **why: str) -> dict[str, Any]:
  """Returns the line of the manifest of a video that is in no shard.

  Args:
    video: The video.
    **why: The status, and the fields that go with it.
  """
  labels = {a.label for a in video.actions} or {video.label} - {None}
  known = {'id': video.id, 'split': video.split, 'labels': sorted(labels)}
  return known | why


def _summarize(
  plan: Plan, settings: Settings, records: Sequence[dict[str, Any]]
) -> dict[str, Any]:
  """Returns the summary, but for the hash of the manifest."""
  splits = {
    split: _summarize_split([r for r in records if r['split'] == split])
    for split in sorted({record['split'] for record in records})
  }
  coverage = _coverage(plan.annotations.class_names, list(splits), records)
  published = publishers.VIDEO_SETS.get(settings.dataset)
  return {
    'name': plan.name,
    'version': layout.VERSION,
    'dataset': settings.dataset,
    'splits': splits,
    'num_classes': len(coverage),
    # Another number shifts the labels: a list of videos was not complete.
    'published_num_classes': list(published.num_classes) if published else [],
    'num_unlabelled': plan.annotations.num_unlabelled,
    'duplicates': [
      {'id': v.id, 'split': v.split, 'label': v.label, 'file': v.file}
      for v in plan.duplicates
    ],
    'classes': coverage,
    'quarantined': [
      {key: r[key] for key in ('id', 'split', 'file', 'reason')}
      for r in records
      if r['status'] == 'quarantined'
    ],
    'unused': {
      why: {'count': len(paths), 'files': paths[:_MAX_NAMED]}
      for why, paths in plan.unused.items()
    },
    'settings': {
      **dataclasses.asdict(settings.encoding),
      'fold': settings.fold,
      'validation_fraction': settings.validation_fraction,
      'max_bad_fraction': settings.max_bad_fraction,
      'max_missing_fraction': settings.max_missing_fraction,
    },
    'annotations': {
      path.name: hashlib.sha256(path.read_bytes()).hexdigest()
      for path in publishers.list_files(settings.annotations)
    },
    'software': {'av': av.__version__, 'tfds': tfds.__version__},
    'plan_sha256': plan.fingerprint(),
  }


def _summarize_split(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Counts the videos of a split; hours and GiB are of the stored ones."""
  stored = [r for r in records if r['status'] == 'stored']
  return {
    'annotated': len(records),
    'stored': len(stored),
    'missing': _count(records, status='missing'),
    'quarantined': _count(records, status='quarantined'),
    'transcoded': _count(stored, is_transcoded=True),
    'frames': sum(r['num_frames'] for r in stored),
    'hours': round(sum(r['duration_s'] for r in stored) / 3600, 4),
    'gib': round(sum(r['num_bytes'] for r in stored) / 2**30, 6),
  }


def _coverage(
  class_names: Iterable[str],
  splits: Iterable[str],
  records: Iterable[dict[str, Any]],
) -> dict[str, dict[str, dict[str, int]]]:
  """Counts annotated and stored videos, by class and split."""
  coverage = {
    name: {split: {'annotated': 0, 'stored': 0} for split in splits}
    for name in class_names
  }
  for record in records:
    for label in record['labels']:
      counts = coverage[label][record['split']]
      counts['annotated'] += 1
      counts['stored'] += record['status'] == 'stored'
  return coverage


def _count(records: Iterable[dict[str, Any]], **wanted: Any) -> int:
  """Counts the records that have all the wanted values."""
  return sum(
    all(record[key] == value for key, value in wanted.items())
    for record in records
  )
