r"""Scores a checkpoint on the validation set, view by view.

python -m mgjax.evaluate --config=configs/moving_digits.py --workdir=runs/digits

Every video is scored once per view; the softmax scores of its views are
summed (Wang et al. 2018; SlowFast 287ec00, slowfast/utils/meters.py). The
result goes to workdir/eval.json.
"""

import contextlib
import inspect
import json
import math
import sys
import time
from typing import NamedTuple

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from absl import flags
from etils import epath

from mgjax import (
  checkpoint,
  cli,
  files,
  models,
  optim,
  parallel,
  train_step,
)
from mgjax.cli import ConfigError
from mgjax.data import sources, stream
from mgjax.peers import Peers
from mgjax.schedule import Grid


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


def lower_eval_step(config, model, mesh, abstract_state):
  """Lowers the evaluation program for this mesh."""
  grid = eval_grid(config)
  step = train_step.make_eval_step(
    model,
    mean=config.data.mean,
    std=config.data.std,
    window=head_window(config, model),
  )
  video = jax.ShapeDtypeStruct(
    (grid.batch, grid.T, grid.H, grid.W, 3),
    np.uint8,
    sharding=parallel.sharded(mesh),
  )
  return jax.jit(step, out_shardings=parallel.sharded(mesh)).lower(
    abstract_state.eval_params, abstract_state.batch_stats, video
  )


class Scores(NamedTuple):
  """What the views of a source's videos were given.

  Attributes:
    scores: float [N, K], sums of softmax scores over the views.
    views: int [N], decoded views of each video.
    labels: int [N], true classes.
    num_lost: Views that could not be decoded.
    failures: Those of this process, 'id: reason'.
  """

  scores: np.ndarray
  views: np.ndarray
  labels: np.ndarray
  num_lost: int
  failures: list[str]


def score(
  program,
  state: train_step.TrainState,
  eval_stream: stream.EvalStream,
  mesh,
  report=lambda done, total: None,
) -> Scores:
  """Scores every view of every video of a source.

  Args:
    program: The compiled evaluation step.
    state: Its running statistics and parameters (where it has an average of
      them, that) are used.
    eval_stream: The views.
    mesh: Devices of the program.
    report: Called after each batch with the numbers of batches.
  """
  source = eval_stream.source
  scores = np.zeros((len(source), len(source.label_names)))
  views = np.zeros(len(source), np.int64)
  labels = np.zeros(len(source), np.int64)
  num_lost = 0
  failures = []
  for number, batch in enumerate(eval_stream.batches()):
    failures += batch.pop('failed')
    batch = parallel.put_batch(mesh, batch)
    probabilities = program(
      state.eval_params, state.batch_stats, batch['video']
    )
    probabilities = parallel.to_host(probabilities)
    index, label, weight, lost = (
      parallel.to_host(batch[name])
      for name in ('index', 'label', 'weight', 'lost')
    )
    num_lost += int(lost.sum())
    np.add.at(scores, index, probabilities * weight[:, None])
    np.add.at(views, index, (weight > 0).astype(np.int64))
    labels[index] = label
    report(number + 1, eval_stream.num_batches)
  return Scores(scores, views, labels, num_lost, failures)


def evaluate(
  program,
  state: train_step.TrainState,
  eval_stream: stream.EvalStream,
  mesh,
  report=lambda done, total: None,
) -> dict:
  """Scores every video of a source and compares with its label.

  Args:
    program, state, eval_stream, mesh, report: As those of `score`.

  Returns:
    'top1', 'top5' in percent over the scored videos; 'num_videos',
    'num_scored', 'num_views' per video; 'failed', videos without a decodable
    view; 'per_class' accuracy in percent by label name; 'confusion'
    [[videos of true class i taken for j]]; 'seconds'.

  Raises:
    RuntimeError: A view was scored twice or never: a bug, not bad data.
  """
  start = time.perf_counter()
  source = eval_stream.source
  scores, views, labels, num_lost, _ = score(
    program, state, eval_stream, mesh, report
  )
  expected = len(source) * eval_stream.views_per_video
  if not num_lost and (
    views.sum() != expected or (views != eval_stream.views_per_video).any()
  ):
    raise RuntimeError(
      f'{views.sum()} views were scored instead of {expected}; each video must '
      f'be scored {eval_stream.views_per_video} times.'
    )
  scored = views > 0
  metrics = accuracy(scores[scored], labels[scored], source.label_names)
  return {
    **metrics,
    'num_videos': len(source),
    'num_scored': int(scored.sum()),
    'num_views': eval_stream.views_per_video,
    'failed': [source[int(i)].id for i in np.flatnonzero(~scored)],
    'seconds': time.perf_counter() - start,
  }


def accuracy(
  scores: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
) -> dict:
  """Top-1, top-5, per-class accuracy and the confusion matrix.

  Args:
    scores: float [N, K].
    labels: int [N].
    names: K label names.

  Returns:
    'top1' and 'top5' in percent, 'per_class' (None for a class without
    videos) and 'confusion' [K][K]. A tie counts against the true class, so
    that constant scores are worth nothing.
  """
  num_classes = len(names)
  true = np.take_along_axis(scores, labels[:, None], 1)
  others = np.arange(num_classes)[None] != labels[:, None]
  rank = ((scores >= true) & others).sum(1)
  confusion = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(confusion, (labels, scores.argmax(1)), 1)
  per_class = {
    name: 100 * float((rank[labels == k] < 1).mean())
    if (labels == k).any()
    else None
    for k, name in enumerate(names)
  }
  return {
    'top1': 100 * float((rank < 1).mean()) if len(labels) else math.nan,
    'top5': 100 * float((rank < 5).mean()) if len(labels) else math.nan,
    'per_class': per_class,
    'confusion': confusion.tolist(),
  }


def evaluate_checkpoint(
  config: ml_collections.ConfigDict,
  workdir: epath.PathLike,
  step: int | None,
  peers: Peers | None = None,
) -> dict:
  """Scores a checkpoint of a run and writes workdir/eval.json.

  Args:
    config: The configuration; its eval fields may differ from the run's.
    workdir: The run's folder.
    step: Checkpoint; None: the newest.
    peers: The processes that share the work; None: this one alone.

  Returns:
    What `evaluate` returns, with 'step' and 'config_eval'.
  """
  peers = peers or Peers()
  workdir = epath.Path(workdir)
  source = sources.open_source(config, config.eval.split)
  check_classes(config, source)
  mesh = parallel.make_mesh()
  check_batch(config, mesh.size)
  if not (workdir / 'checkpoints').is_dir():
    raise ConfigError(f'--workdir={workdir} holds no checkpoints of a run')
  checkpoints = checkpoint.Checkpoints(workdir)
  steps = checkpoints.steps()
  if not steps:
    raise ConfigError(f'{checkpoints.directory} holds no complete checkpoint')
  step = steps[-1] if step is None else step
  if step not in steps:
    raise ConfigError(f'--step={step}: there are checkpoints of steps {steps}')
  model = models.from_config(config.model, config.norm)
  tx = optim.make_optimizer(config.optim)
  abstract = checkpoint.abstract_state(
    lambda: train_step.create_state(
      model,
      tx,
      jax.random.key(0),
      example_video(config),
    ),
    parallel.replicated(mesh),
  )
  program = lower_eval_step(config, model, mesh, abstract).compile()
  variables = checkpoint.load_variables(
    checkpoints.directory / str(step),
    {name: getattr(abstract, name) for name in checkpoint.VARIABLES},
  )
  result = evaluate(
    program,
    abstract.replace(**variables),
    stream.EvalStream(
      config,
      source,
      config.eval.batch_size,
      shard=peers.index,
      num_shards=peers.count,
    ),
    mesh,
    report=_print_progress if peers.is_first else lambda done, total: None,
  )
  result = {'step': step, 'config_eval': config.eval.to_dict(), **result}
  if peers.is_first:
    write_result(workdir, result)
  checkpoints.close()
  return result


def _print_progress(done: int, total: int) -> None:
  end = '' if done < total else '\n'
  print(f'\rbatch {done}/{total}', end=end, flush=True)


def write_result(workdir: epath.PathLike, result: dict) -> None:
  """Writes workdir/eval.json."""
  text = json.dumps(result, indent=1) + '\n'
  files.write_text(epath.Path(workdir) / 'eval.json', text)


def example_video(config: ml_collections.ConfigDict):
  """A small batch that initialises a model; parameters ignore its shape."""
  # Enough frames for any ratio of the pathways' frame rates.
  return jax.numpy.zeros((1, config.data.num_frames, 32, 32, 3))


def check_classes(config, source: sources.Source) -> None:
  """Raises ConfigError where the model and the data set disagree."""
  if config.model.num_classes != len(source.label_names):
    raise ConfigError(
      f'model.num_classes={config.model.num_classes}, but {source.name} has '
      f'{len(source.label_names)} classes'
    )


def check_batch(config, num_devices: int) -> None:
  """Raises ConfigError where evaluation batches cannot be shared out."""
  if config.eval.batch_size % num_devices:
    raise ConfigError(
      f'eval.batch_size={config.eval.batch_size} is not a multiple of the '
      f'{num_devices} devices'
    )


def define_flags(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values)
  flags.DEFINE_integer(
    'step',
    None,
    'Checkpoint to score; by default the newest.',
    flag_values=values,
  )
  parallel.define_flags(values)


def main(values: flags.FlagValues) -> None:
  if not values.workdir:
    raise ConfigError('--workdir is missing; give the folder of a run.')
  with contextlib.closing(parallel.start(values)) as peers:
    with peers.guard():
      result = evaluate_checkpoint(
        values.config, values.workdir, values.step, peers
      )
  if not peers.is_first:
    return
  print(
    f'top-1 {result["top1"]:.2f} %, top-5 {result["top5"]:.2f} % of '
    f'{result["num_scored"]} of {result["num_videos"]} videos '
    f'({result["num_views"]} views each), step {result["step"]}'
  )


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags))
