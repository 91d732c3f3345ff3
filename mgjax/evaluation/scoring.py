"""Scores of videos, view by view, and what they are worth."""

import contextlib
import hashlib
import inspect
import io
import itertools
import json
import os
import sys
import time
import zlib
from typing import NamedTuple

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from mgjax import files, models, stop_signal
from mgjax.cli import ConfigError, RunError
from mgjax.config import fields
from mgjax.cpu import allocator, compilation
from mgjax.data import description, sources, stream
from mgjax.evaluation import eval_picture
from mgjax.grids.schedule import Grid
from mgjax.hosts import parallel
from mgjax.hosts.peers import Peers
from mgjax.planning import plan
from mgjax.progress import Progress
from mgjax.run import checkpoint, run_folder
from mgjax.setup import network, run_checks
from mgjax.step import optim, train_step
from mgjax.weights import weight_check


def eval_grid(config: ml_collections.ConfigDict) -> Grid:
  """The one grid of evaluation: all frames, the evaluation crop."""
  return Grid(
    config.data.num_frames,
    *stream.crop_hw(config.eval),
    config.eval.batch_size,
  )


def head_window(
  config: ml_collections.ConfigDict, model: nn.Module
) -> tuple[int, int, int] | None:
  """Returns the window of `train_step.make_eval_step` for `config.eval.head`.

  Raises:
    ConfigError: The model has no fully convolutional head, or evaluates
      smaller clips than it is trained on.
  """
  if config.eval.head == 'global':
    return None
  if 'window' not in inspect.signature(type(model).__call__).parameters:
    raise ConfigError(
      f"eval.head='fully_conv', but model.name={config.model.name!r} has no "
      "such head; use 'global'"
    )
  crop, train_crop = stream.crop_hw(config.eval), stream.crop_hw(config.data)
  if crop[0] < train_crop[0] or crop[1] < train_crop[1]:
    raise ConfigError(
      f"eval.head='fully_conv', but eval.crop_px (height and width {crop}) is "
      f"smaller than data.crop_px ({train_crop}); use 'global'"
    )
  return config.data.num_frames, *train_crop


def load_state(
  config: ml_collections.ConfigDict,
  model,
  mesh,
  path: epath.PathLike,
  *,
  instead: str = '{path}',
) -> train_step.TrainState:
  """Reads what evaluation needs of a checkpoint; nothing else is in the state.

  Args:
    config: The configuration.
    model: Its network.
    mesh: Devices, each of which gets all of it.
    path: Folder of the checkpoint.
    instead: How the user asks for another one: see
      `checkpoint.load_variables`.

  Raises:
    ConfigError: The checkpoint is of another network.
    checkpoint.DamagedError: It is damaged.
  """
  abstract = checkpoint.abstract_state(
    lambda: train_step.create_state(
      model,
      optim.make_optimizer(config.optim, config.norm.frozen),
      jax.random.key(0),
      models.example_video(config.data.num_frames),
    ),
    parallel.replicated(mesh),
  )
  variables = checkpoint.load_variables(
    path,
    {name: getattr(abstract, name) for name in checkpoint.VARIABLES},
    instead=instead,
  )
  weight_check.check_numbers(variables, path)
  return abstract.replace(**variables)


def lower_eval_step(config, model, mesh, state):
  """Lowers the evaluation program of a state, abstract or not."""
  grid = eval_grid(config)
  step = train_step.make_eval_step(
    model,
    mean=config.data.mean,
    std=config.data.std,
    window=head_window(config, model),
    loss=config.optim.loss,
  )
  video = jax.ShapeDtypeStruct(
    (grid.batch, grid.T, grid.H, grid.W, 3),
    np.uint8,
    sharding=parallel.sharded(mesh),
  )
  return jax.jit(step, out_shardings=parallel.sharded(mesh)).lower(
    state.eval_params, state.batch_stats, video
  )


_RESULT = 'eval.json'

# So many videos with lost views are listed; the others are only counted.
_MAX_LOST = 100
_MAX_LOST_PRINTED = 5


class Scores(NamedTuple):
  """What the views of a source's videos were given.

  Attributes:
    scores: float [N, K], the scores of each video's views as one: their mean
      for eval.ensemble='sum', or the greatest of each class.
    views: int [N], decoded views of each video.
    lost: int [N], views that could not be read or decoded.
    labels: int [N], true classes; or float [N, K], 1 for every true class; 0
      for videos all of whose views are lost.
    failures: Why a view could not be decoded, by the id of its video.
  """

  scores: np.ndarray
  views: np.ndarray
  lost: np.ndarray
  labels: np.ndarray
  failures: dict[str, str]


class Partial:
  """The scores of an unfinished evaluation, in a file that a kill leaves.

  The file is replaced whole, so that it always holds complete batches. Every
  process of a run reads it; the first one writes it.
  """

  def __init__(self, workdir: epath.PathLike, key: str, save_every_s: float):
    """Names the file.

    Args:
      workdir: The run's folder.
      key: What was scored by what (`partial_key`); others' scores are ignored.
      save_every_s: Seconds between saves, at least.
    """
    self._path = epath.Path(workdir) / 'eval.partial.npz'
    self._key = key
    self._save_every_s = save_every_s
    self._saved = time.monotonic()

  def load(self) -> tuple[int, Scores] | None:
    """Returns the number of scored batches and what they gave, if anything.

    A file that cannot be used is told and removed.
    """
    try:
      content = io.BytesIO(self._path.read_bytes())
    except FileNotFoundError:
      return None
    try:
      with np.load(content, allow_pickle=False) as file:
        if str(file['key']) != self._key:
          return None
        arrays = {name: file[name] for name in Scores._fields[:-1]}
        failures = dict(json.loads(str(file['failures'])))
        return int(file['num_batches']), Scores(**arrays, failures=failures)
    # Damaged by a power cut, say, for which NumPy, zipfile, zlib and JSON have
    # an error each; or written by another version of this program.
    except Exception as error:
      if jax.process_index() == 0:
        print(
          f'\n{self._path} cannot be used ({type(error).__name__}: {error}); '
          'the evaluation begins anew',
          file=sys.stderr,
        )
        self.remove()
      return None

  def save_sometimes(self, num_batches: int, scores: Scores) -> None:
    """Writes the file, if the last time is long enough ago."""
    if time.monotonic() - self._saved >= self._save_every_s:
      self.save(num_batches, scores)

  def save(self, num_batches: int, scores: Scores) -> None:
    """Writes the file."""
    if jax.process_index() == 0:
      buffer = io.BytesIO()
      np.savez(
        buffer,
        key=self._key,
        num_batches=num_batches,
        **scores._asdict() | {'failures': json.dumps(scores.failures)},
      )
      files.write_bytes(self._path, buffer.getvalue())
    self._saved = time.monotonic()

  def remove(self) -> None:
    """Removes the file: the result is written."""
    self._path.unlink(missing_ok=True)


def partial_key(
  config: ml_collections.ConfigDict,
  state: train_step.TrainState,
  source: sources.Source,
) -> str:
  """What an evaluation depends on, as one hash: views, weights, videos."""
  settings = {
    name: config[name].to_dict() for name in ('model', 'data', 'norm', 'eval')
  }
  for name in fields.MACHINE_DATA_FIELDS:
    del settings['data'][name]
  settings['loss'] = config.optim.loss
  settings['videos'] = [
    source.name,
    source.split,
    len(source),
    source.manifest_sha256,
  ]
  checksum = 0
  for leaf in jax.tree.leaves((state.eval_params, state.batch_stats)):
    checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
  settings['weights'] = [int(state.step), checksum]
  text = json.dumps(settings, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def score(
  program,
  state: train_step.TrainState,
  eval_stream: stream.EvalStream,
  mesh,
  report=lambda done, total: None,
  partial: Partial | None = None,
  peers: Peers | None = None,
) -> Scores:
  """Scores every view of every video of a source.

  Args:
    program: The compiled evaluation step.
    state: Its running statistics and parameters (where it has an average of
      them, that) are used.
    eval_stream: The views.
    mesh: Devices of the program.
    report: Called after each batch with the numbers of batches; it may raise
      `stop_signal.Stopped`.
    partial: Where unfinished work is kept and found again; None: nowhere.
    peers: The processes that share the work; None: this one alone.
  """
  peers = peers or Peers()
  found = partial.load() if partial else None
  first, scores = found or (0, _no_scores(eval_stream))
  maximum = eval_stream.config.eval.ensemble == 'max'
  for number, batch in enumerate(eval_stream.batches(first), first):
    failed = batch.pop('failed')
    batch = parallel.put_batch(mesh, batch)
    probabilities = program(
      state.eval_params, state.batch_stats, batch['video']
    )
    probabilities = parallel.to_host(probabilities)
    if not np.isfinite(probabilities).all():
      raise RunError(
        f'the scores of evaluation batch {number + 1} of '
        f'{eval_stream.num_batches} are not finite: the weights, or the '
        'features that they make of these videos, are too large'
      )
    index, label, weight, lost = (
      parallel.to_host(batch[name])
      for name in ('index', 'label', 'weight', 'lost')
    )
    # Padding and lost views count as 0, the least that a score can be.
    combine = np.maximum if maximum else np.add
    combine.at(scores.scores, index, probabilities * weight[:, None])
    np.add.at(scores.views, index, (weight > 0).astype(np.int64))
    np.add.at(scores.lost, index, lost.astype(np.int64))
    # A lost view may not know its video's.
    scores.labels[index[~lost]] = label[~lost]
    if lost.any():  # In any process.
      for name, reason in itertools.chain(*peers.exchange(failed)):
        scores.failures.setdefault(name, reason)
    if partial:
      partial.save_sometimes(number + 1, scores)
    try:
      report(number + 1, eval_stream.num_batches)
    except stop_signal.Stopped:
      if partial:
        partial.save(number + 1, scores)
      raise
  if maximum:
    return scores
  return scores._replace(
    scores=scores.scores / np.maximum(scores.views, 1)[:, None]
  )


def _no_scores(eval_stream: stream.EvalStream) -> Scores:
  """The scores before the first batch."""
  num_videos = len(eval_stream.source)
  num_classes = eval_stream.config.model.num_classes
  return Scores(
    scores=np.zeros((num_videos, num_classes)),
    views=np.zeros(num_videos, np.int64),
    lost=np.zeros(num_videos, np.int64),
    labels=(
      np.zeros((num_videos, num_classes), np.float32)
      if eval_stream.source.has_actions
      else np.zeros(num_videos, np.int32)
    ),
    failures={},
  )


def evaluate(
  program,
  state: train_step.TrainState,
  eval_stream: stream.EvalStream,
  mesh,
  report=lambda done, total: None,
  partial: Partial | None = None,
  peers: Peers | None = None,
) -> dict:
  """Scores every video of a source and compares with its labels.

  Args:
    program, state, eval_stream, mesh, report, partial, peers: As those of
      `score`.

  Returns:
    What `accuracy` returns (`multi_label_accuracy` where videos have actions),
    over the scored videos; 'num_videos', 'num_scored', 'num_views' per video;
    'failed', videos without a decodable view; 'num_lossy_videos' and
    'num_lost_views', those that could not be decoded, and 'lost', some of
    these videos: 'id', 'views' and 'reason'; 'manifest_sha256' where the data
    set has a manifest; 'seconds', since the start or resumption.

  Raises:
    RunError: No view of any video can be decoded.
    RuntimeError: A view was scored twice or never: a bug, not bad data.
  """
  start = time.perf_counter()
  source = eval_stream.source
  scores, views, lost, labels, failures = score(
    program, state, eval_stream, mesh, report, partial, peers
  )
  wrong = np.flatnonzero(views + lost != eval_stream.views_per_video)
  if len(wrong):
    i = int(wrong[0])
    raise RuntimeError(
      f'{len(wrong)} of {len(source)} videos were not scored '
      f'{eval_stream.views_per_video} times, such as {source.name_of(i)}: '
      f'{views[i]} times, and {lost[i]} views could not be decoded.'
    )
  scored = views > 0
  if not scored.any():
    name, reason = next(iter(failures.items()))
    raise RunError(
      f'none of the {len(source)} videos of the evaluation can be decoded, '
      f'such as {name}: {reason}'
    )
  lossy = np.flatnonzero(lost)
  measure = accuracy if labels.ndim == 1 else multi_label_accuracy
  result = {
    **measure(scores[scored], labels[scored], source.label_names),
    'num_videos': len(source),
    'num_scored': int(scored.sum()),
    'num_views': eval_stream.views_per_video,
    'failed': [source.name_of(int(i)) for i in np.flatnonzero(~scored)],
    'num_lossy_videos': len(lossy),
    'num_lost_views': int(lost.sum()),
    'lost': [
      {'id': name, 'views': int(lost[i]), 'reason': failures[name]}
      for i in lossy[:_MAX_LOST]
      for name in [source.name_of(int(i))]
    ],
    'seconds': time.perf_counter() - start,
  }
  if source.manifest_sha256:
    result['manifest_sha256'] = source.manifest_sha256
  return result


def accuracy(
  scores: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> dict:
  """Top-1, top-5, accuracy by class and the confusion matrix.

  Args:
    scores: float [N, K], at least one.
    labels: int [N].
    names: K label names.

  Returns:
    'top1' and 'top5' in percent; 'per_class' (None for a class without
    videos), 'mean_class', the mean over the classes with videos, and
    'confusion' [K][K], videos of true class i taken for j. A tie counts
    against the true class, so that constant scores are worth nothing, and so
    does NaN.
  """
  num_classes = len(names)
  true = np.take_along_axis(scores, labels[:, None], 1)
  others = np.arange(num_classes)[None] != labels[:, None]
  rank = (~(scores < true) & others).sum(1)
  confusion = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(confusion, (labels, scores.argmax(1)), 1)
  per_class = {
    name: 100 * float((rank[labels == k] < 1).mean())
    if (labels == k).any()
    else None
    for k, name in enumerate(names)
  }
  return {
    **_top_k(rank),
    'mean_class': float(np.mean(_known(per_class))),
    'per_class': per_class,
    'confusion': confusion.tolist(),
  }


def _top_k(rank: np.ndarray) -> dict[str, float]:
  """Percent of the videos that rank (int [N]) below 1 and 5."""
  return {f'top{k}': 100 * float((rank < k).mean()) for k in (1, 5)}


def multi_label_accuracy(
  scores: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> dict:
  """Mean average precision, where videos have any number of labels.

  Args:
    scores: float [N, K], at least one.
    labels: float [N, K], 1 for every label of a video.
    names: K label names.

  Returns:
    'map', mean average precision over the classes with videos (not there where
    no class has any), 'per_class',
    average precision by class (None for a class without videos), 'top1' and
    'top5': videos one of whose labels is the likeliest class, or one of the
    five likeliest; a tie counts against them. All in percent.

  Source: SlowFast 287ec00, utils/meters.py get_map.
  """
  per_class = {
    name: 100 * average_precision(scores[:, k], labels[:, k])
    if labels[:, k].any()
    else None
    for k, name in enumerate(names)
  }
  # Of a video's labels the likeliest decides; others at its score are in front.
  best = np.where(labels > 0, scores, -np.inf).max(1, keepdims=True)
  rank = (~(scores < best) & (labels == 0)).sum(1)
  known = _known(per_class)
  return {
    **({'map': float(np.mean(known))} if known else {}),
    **_top_k(rank),
    'per_class': per_class,
  }


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
  """Precision at the score of each positive, averaged over the positives.

  Args:
    scores: float [N].
    labels: [N], nonzero for the positives, of which there is at least one.

  Returns:
    A number in (0, 1], that of sklearn.metrics.average_precision_score.
  """
  order = np.argsort(-scores, kind='stable')
  scores, positive = scores[order], labels[order] > 0
  # Videos with equal scores are found together: the last of them counts.
  last = np.append(scores[1:] != scores[:-1], True)
  found = positive.cumsum()[last]
  precision = found / (np.flatnonzero(last) + 1)
  return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def _known(per_class: dict) -> list[float]:
  """The values that are not None."""
  return [value for value in per_class.values() if value is not None]


# Numbers of a result, the one that matters most in front, with their names.
METRICS = {
  'map': 'mAP',
  'top1': 'top-1',
  'top5': 'top-5',
  'mean_class': 'mean class accuracy',
}


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


def losses(result: dict) -> list[str]:
  """Lines that tell of some videos with lost views how many, and why."""
  told = result['lost'][:_MAX_LOST_PRINTED]
  lines = [
    f'  {video["id"]}: {video["views"]} of {result["num_views"]} views lost: '
    f'{video["reason"]}'
    for video in told
  ]
  if more := result['num_lossy_videos'] - len(told):
    lines.append(
      f'  and views of {more} more videos; eval.json has up to '
      f'{_MAX_LOST} of them'
    )
  return lines


def evaluate_checkpoint(
  config: ml_collections.ConfigDict,
  workdir: epath.PathLike,
  step: int | None,
  peers: Peers | None = None,
  *,
  allow_config_change: bool = False,
  stop: stop_signal.Listener | None = None,
) -> dict:
  """Scores a checkpoint of a run and writes workdir/eval.json.

  Args:
    config: The configuration; its eval fields may differ from the run's.
    workdir: The run's folder.
    step: Checkpoint; None: the newest.
    peers: The processes that share the work; None: this one alone.
    allow_config_change: Whether also other settings than config.eval and the
      machine's own may differ from those of the run.
    stop: Asked for signals after every batch; None: nobody.

  Returns:
    What `evaluate` returns, with 'step', 'config_eval' and 'overrides': the
    settings that differ from the run's, by 'group.field'.

  Raises:
    ConfigError: The settings are those of another run, or cannot work, or
      there is no such checkpoint.
    Stopped: There was a signal; what has been scored is kept.
  """
  peers = peers or Peers()
  workdir = epath.Path(workdir)
  overrides = run_folder.check_evaluation(config, workdir, allow_config_change)
  mesh = parallel.make_mesh()
  run_checks.check_evaluation(config, description.describe(config), mesh.size)
  plan.check_network(config, [eval_grid(config)])
  source = sources.open_source(config, config.eval.split)
  if other := run_folder.other_labels(workdir, source.label_names):
    if not allow_config_change:
      raise ConfigError(
        f'{source.name} has other names of the classes than the run in '
        f'{workdir}, such as {other}: prepare it as it was, or give '
        '--allow_config_change'
      )
    overrides['the names of the classes'] = other
  if peers.is_first:
    files.check_output(workdir / _RESULT, os.fspath(workdir / _RESULT))
  eval_stream = stream.EvalStream(
    config,
    source,
    config.eval.batch_size,
    shard=peers.index,
    num_shards=peers.count,
  )
  if not (workdir / 'checkpoints').is_dir():
    raise ConfigError(f'--workdir={workdir} holds no checkpoints of a run')
  checkpoints = checkpoint.Checkpoints(workdir)
  steps = checkpoints.steps()
  if not steps:
    raise ConfigError(f'{checkpoints.directory} holds no complete checkpoint')
  step = steps[-1] if step is None else step
  if step not in steps:
    raise ConfigError(f'--step={step}: there are checkpoints of steps {steps}')
  model = network.model(config)
  path = checkpoints.directory / str(step)
  state = load_state(config, model, mesh, path, instead='--step={step}')
  state = state.replace(step=step)
  weight_check.check_features(
    model,
    {'params': state.params, 'batch_stats': state.batch_stats},
    config.data.num_frames,
    path,
  )
  program = compilation.compile_program(
    lower_eval_step(config, model, mesh, state)
  )
  partial = Partial(
    workdir, partial_key(config, state, source), config.eval.save_every_s
  )
  found = partial.load()
  bar = Progress(
    eval_stream.num_batches,
    found[0] if found else 0,
    unit='batch',
    quiet=not peers.is_first,
  )

  def report(done, total):
    bar.update(done, bar.time_left(done))
    if stop:
      stop.defer(lambda: 'the batch at hand; all scores are kept')
      if done < total:
        stop.check(peers)

  result = evaluate(program, state, eval_stream, mesh, report, partial, peers)
  bar.close()
  result = {
    'step': step,
    'config_eval': config.eval.to_dict(),
    'overrides': overrides,
    **result,
  }
  if peers.is_first:
    write_result(workdir, result)
    title = f'{workdir.name}, step {step}: {describe(result)}'
    eval_picture.draw(workdir / 'eval.png', result, title=title)
    partial.remove()
  checkpoints.close()
  return result


def write_result(workdir: epath.PathLike, result: dict) -> None:
  """Writes workdir/eval.json, one line per entry."""
  # A bug ends here, rather than in a file that is no JSON.
  lines = [
    f'{json.dumps(k)}: {json.dumps(v, allow_nan=False)}'
    for k, v in result.items()
  ]
  text = '{\n' + ',\n'.join(lines) + '\n}\n'
  files.write_text(epath.Path(workdir) / _RESULT, text)


def main(values: flags.FlagValues) -> None:
  allocator.keep()
  with (
    contextlib.closing(parallel.start(values)) as peers,
    stop_signal.listening() as stop,
    stop.at_end(peers.tell_stopped),
    peers.guard(),
  ):
    try:
      result = evaluate_checkpoint(
        values.config,
        values.workdir,
        values.step,
        peers,
        allow_config_change=values.allow_config_change,
        stop=stop,
      )
    except stop_signal.Stopped as stopped:
      if peers.is_first:
        print(
          'Stopped; the same command goes on with the next batch.',
          file=sys.stderr,
        )
      sys.exit(stop_signal.exit_code(stopped.args[0]))
  if not peers.is_first:
    return
  print(
    f'{describe(result)} ({result["num_views"]} views each), '
    f'step {result["step"]}; {values.workdir}/eval.json, eval.png',
    *losses(result),
    sep='\n',
  )
