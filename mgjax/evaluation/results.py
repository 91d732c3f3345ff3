"""Makes the result of an evaluation, puts it into words and writes it."""

import json
import time
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jaxtyping import Bool

from mgjax import files
from mgjax.data.eval_stream import EvalStream
from mgjax.errors import RunError
from mgjax.evaluation import accuracy, scoring
from mgjax.step.train_state import TrainState

FILE = 'eval.json'

# Numbers of a result, the one that matters most in front, with their names.
METRICS = {
  'map': 'mAP',
  'top1': 'top-1',
  'top5': 'top-5',
  'mean_class': 'mean class accuracy',
}

# So many videos with lost views are listed; the others are only counted.
_MAX_LOST = 100
_MAX_LOST_PRINTED = 5


def evaluate(
  program: Callable,
  state: TrainState,
  eval_stream: EvalStream,
  mesh: jax.sharding.Mesh,
  **options,
) -> dict:
  """Scores every video of a source and compares with its labels.

  Args:
    program: The compiled evaluation step.
    state: Its state.
    eval_stream: The views.
    mesh: Devices of the program.
    **options: Those of `scoring.score`.

  Returns:
    What `accuracy.accuracy` returns (`accuracy.multi_label_accuracy` where
    videos have actions), over the videos with a decoded view, and

      'num_videos'        of the source
      'num_scored'        of these, videos with a decoded view
      'num_views'         views of each video
      'correct'           which videos of the source top-1 is right about, for
                          `correct_videos`; not there where videos have actions
      'failed'            ids of the videos without a decoded view
      'num_lossy_videos'  videos with a view that could not be decoded
      'num_lost_views'    such views
      'lost'              some of these videos: 'id', 'views' and 'reason'
      'manifest_sha256'   where the data set has a manifest
      'seconds'           since the start, or the resumption

  Raises:
    RunError: No view of any video can be decoded.
    RuntimeError: A view was scored twice or never: a bug, not bad data.
  """
  start = time.perf_counter()
  source = eval_stream.source
  scored = scoring.score(program, state, eval_stream, mesh, **options)
  _check_counts(scored, eval_stream)
  known = scored.views > 0
  single = scored.labels.ndim == 1
  if not known.any():
    name, reason = next(iter(scored.failures.items()))
    raise RunError(
      f'none of the {len(source)} videos of the evaluation can be decoded, '
      f'such as {name}: {reason}'
    )
  labels = scored.labels[known]
  measure = accuracy.accuracy if single else accuracy.multi_label_accuracy
  correct = {}
  if single:
    right = known & (accuracy.ranks(scored.scores, scored.labels) < 1)
    correct = {'correct': np.packbits(right).tobytes().hex()}
  lossy = np.flatnonzero(scored.lost)
  names = {int(i): source.name_of(int(i)) for i in lossy[:_MAX_LOST]}
  manifest = source.manifest_sha256
  return {
    **measure(scored.scores[known], labels, source.label_names),
    'num_videos': len(source),
    'num_scored': int(known.sum()),
    'num_views': eval_stream.views_per_video,
    **correct,
    'failed': [source.name_of(int(i)) for i in np.flatnonzero(~known)],
    'num_lossy_videos': len(lossy),
    'num_lost_views': int(scored.lost.sum()),
    'lost': [
      {
        'id': name,
        'views': int(scored.lost[i]),
        'reason': scored.failures[name],
      }
      for i, name in names.items()
    ],
    'seconds': time.perf_counter() - start,
    **({'manifest_sha256': manifest} if manifest else {}),
  }


def correct_videos(result: dict) -> Bool[np.ndarray, ' N']:
  """Which videos a network has named correctly, in the data set's order.

  `result['correct']` has a bit for each: the first video is the highest bit of
  the first hexadecimal digit. Bits that fill up the last byte are 0.

  Args:
    result: That of `evaluate`, or what eval.json has.

  Returns:
    Of the 'num_videos' videos of the split those whose true class scores
    higher than every other; a video that could not be decoded is not one.

  Raises:
    KeyError: Videos have actions, or an older version has made the result.
  """
  packed = np.frombuffer(bytes.fromhex(result['correct']), np.uint8)
  return np.unpackbits(packed, count=result['num_videos']).astype(bool)


def _check_counts(scored: scoring.Scores, eval_stream: EvalStream) -> None:
  """Raises RuntimeError where a view was not scored exactly once: a bug."""
  wrong = np.flatnonzero(
    scored.views + scored.lost != eval_stream.views_per_video
  )
  if len(wrong):
    i = int(wrong[0])
    raise RuntimeError(
      f'{len(wrong)} of {len(eval_stream.source)} videos were not scored '
      f'{eval_stream.views_per_video} times, such as '
      f'{eval_stream.source.name_of(i)}: {scored.views[i]} times, and '
      f'{scored.lost[i]} views could not be decoded.'
    )


def score(result: dict, *, evens_classes: bool) -> float:
  """What decides which checkpoints are the best, in percent.

  Args:
    result: Of `evaluate`.
    evens_classes: Whether the training evens out the frequencies of classes.
  """
  # Where videos have several labels, the likeliest one says little.
  if 'map' in result:
    return result['map']
  # Top-1 is that of the frequent classes.
  return result['mean_class' if evens_classes else 'top1']


def describe(result: dict) -> str:
  """A result in words: 'top-1 50.00 %, ..., 64 of 64 videos scored'."""
  numbers = ', '.join(
    f'{text} {result[name]:.2f} %'
    for name, text in METRICS.items()
    if name in result
  )
  counts = f'{result["num_scored"]} of {result["num_videos"]} videos scored'
  # Records of older versions do not tell.
  if result.get('num_lost_views'):
    counts += f', {result["num_lost_views"]} views lost'
  return f'{numbers}, {counts}'


def lost_views(result: dict) -> list[str]:
  """Lines that name some of the videos with lost views, and the reasons."""
  named = result['lost'][:_MAX_LOST_PRINTED]
  lines = [
    f'  {video["id"]}: {video["views"]} of {result["num_views"]} views lost: '
    f'{video["reason"]}'
    for video in named
  ]
  if more := result['num_lossy_videos'] - len(named):
    lines.append(
      f'  and views of {more} more videos; {FILE} has up to {_MAX_LOST} of them'
    )
  return lines


def write(workdir: epath.PathLike, result: dict) -> None:
  """Writes workdir/eval.json, one line per entry.

  Raises:
    ValueError: A number is NaN or infinite; nothing is written.
  """
  # A bug ends here, rather than in a file that is no JSON.
  lines = [
    f'{json.dumps(k)}: {json.dumps(v, allow_nan=False)}'
    for k, v in result.items()
  ]
  text = '{\n' + ',\n'.join(lines) + '\n}\n'
  files.write_text(epath.Path(workdir) / FILE, text)
