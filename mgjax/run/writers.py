"""Writes a run's numbers: metrics.jsonl, TensorBoard, Weights & Biases.

A line of metrics.jsonl is about a training step (it has 'loss') or about an
evaluation (it has 'eval_num_scored'). Weights & Biases gets the same numbers
under the same names, TensorBoard in groups (`tag`). The fields of every line:

  step            Steps done.
  epoch           Passes over the training set done, a fraction.
  clips           Clips done.
  T, H, W         Frames, height and width [px] of the newest step's grid.
  batch           Its clips, over all devices.
  train_s         Training time since the run began [s], that of earlier
                  launches included: steps, waits for data and Python; without
                  compilation, evaluation and checkpoints.
  wait_fraction   Share of the training time in which the device waited for
                  data, 0 to 1: since the line before, in a line of an
                  evaluation since the run began.

of a training step, every train.log_every_steps steps:

  loss            Mean over the clips of the step.
  top1            Share of its clips whose likeliest class is right, 0 to 1.
  grad_norm       Norm of its gradients over all parameters, before clipping.
  lr              Its learning rate.
  bn_groups       Its batch-norm groups.
  ids_crc32       CRC-32 of the ids of its clips: two runs with the same number
                  saw the same videos.
  step_s          Time of the device for this step alone [s].
  steps_per_s     Steps per second of training time since the line before.
  clips_per_s     Clips likewise.
  gflops          Rate of this step alone, in 1e9 floating-point operations per
                  second, of all devices (`step_log.step_gflop`); only where
                  optim.train is 'all'.
  mfu             Share of the devices' peak that this is, 0 to 1; only where
                  train.peak_tflops is set, too.
  compile_wait_s  Time since the run began in which the device waited for a
                  program [s].

and of an evaluation, in percent of the videos, what there is of:

  eval_top1, eval_top5    Videos whose class is the likeliest, or one of five.
  eval_mean_class         Mean over the classes of the top-1 of each.
  eval_map                Mean average precision (any number of labels).
  eval_num_scored         Videos that were scored, a count.
"""

import contextlib
import hashlib
import importlib
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from mgjax import files
from mgjax.errors import ConfigError
from mgjax.run import run_folder

# What tells of speed, and what of the schedule; the rest is of training.
_GROUPS = {
  'speed': (
    *('train_s', 'wait_fraction', 'compile_wait_s', 'step_s'),
    *('steps_per_s', 'clips_per_s', 'gflops', 'mfu'),
  ),
  'schedule': ('epoch', 'clips', 'T', 'H', 'W', 'batch', 'lr', 'bn_groups'),
}


def tag(name: str) -> str:
  """TensorBoard's name of a number, such as 'train/loss' or 'eval/top1'."""
  if name.startswith('eval_'):
    return f'eval/{name.removeprefix("eval_")}'
  for group, names in _GROUPS.items():
    if name in names:
      return f'{group}/{name}'
  return f'train/{name}'


class Writer:
  """Appends to metrics.jsonl, TensorBoard events and Weights & Biases."""

  def __init__(self, workdir: epath.PathLike, step: int, *, wandb: Any = None):
    """Opens the files.

    Args:
      workdir: The run's folder.
      step: Steps done. Lines of later ones, and of the evaluation after this
        one, are dropped: a resumed run writes them again.
      wandb: A run of Weights & Biases that gets everything too.
    """
    self._path = epath.Path(workdir) / run_folder.METRICS
    kept = [
      m
      for m in run_folder.read_metrics(workdir)
      if m['step'] < step or (m['step'] == step and 'eval_num_scored' not in m)
    ]
    self._text = ''.join(json.dumps(m) + '\n' for m in kept)
    files.write_text(self._path, self._text)
    # An object store cannot append: there the file is written whole.
    remote = files.is_remote(self._path)
    self._file = None if remote else self._path.open('a')
    self._events = _Events(workdir, step)
    self._wandb = wandb

  def write(self, line: dict) -> None:
    """Writes one line: a flat dict with 'step'."""
    text = json.dumps(line) + '\n'
    if self._file is None:
      self._text += text
    else:
      self._file.write(text)
      self._file.flush()
    for name, value in line.items():
      if name != 'step' and isinstance(value, int | float):
        self._events.add(summary.scalar(tag(name), value), line['step'])
    if self._wandb is not None:
      self._wandb.log(line, step=line['step'])

  def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
    """Adds a picture, uint8 [H, W, 3]."""
    self._events.add(summary.image(name, pixels, dataformats='HWC'), step)
    if self._wandb is not None:
      images = importlib.import_module('wandb')
      self._wandb.log({name: images.Image(pixels)}, step=step)

  def settings(
    self, fields: Mapping[str, bool | int | float | str], metric: str
  ) -> None:
    """Adds the settings as hyper-parameters, to be compared by a metric.

    Args:
      fields: The settings by dotted name.
      metric: Name of a number in the lines.
    """
    for event in summary.hparams(dict(fields), {tag(metric): 0.0}):
      self._events.add(event)

  def flush(self) -> None:
    """Writes what waits in memory, for good.

    It must be there before a checkpoint: a run that goes on from that writes
    only what comes after it.
    """
    self._events.flush()
    if self._file is None:
      self._path.write_text(self._text)
    else:
      os.fsync(self._file.fileno())

  def close(self) -> None:
    # Each of them, also where the disk is full; the last one comes first.
    with contextlib.ExitStack() as stack:
      if self._wandb is not None:
        stack.callback(self._wandb.finish)
      stack.callback(self._events.close)
      if self._file is not None:
        stack.callback(self._file.close)
      stack.callback(self.flush)


class _Events:
  """A file of TensorBoard events.

  Differs: tensorboardX.SummaryWriter writes in a thread, which dies where the
    disk is full; whoever then adds the eleventh event waits for ever.
  """

  FLUSH_S = 20

  def __init__(self, workdir: epath.PathLike, step: int):
    """Opens a new file.

    Args:
      workdir: Its folder.
      step: Steps done; TensorBoard forgets what earlier files have of later
        ones.
    """
    event_file_writer.directory_check(os.fspath(workdir))
    prefix = os.path.join(os.fspath(workdir), 'events')
    self._file = event_file_writer.EventsWriter(prefix)
    self._flushed = time.monotonic()
    if step:
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(session_log=start, step=step + 1)

  def add(self, content: Any, step: int | None = None) -> None:
    """Adds a summary.

    Raises:
      OSError: It cannot be written.
    """
    self._write(summary=content, step=step)

  def _write(self, **fields: Any) -> None:
    self._file.write_event(event_pb2.Event(wall_time=time.time(), **fields))
    if time.monotonic() - self._flushed > self.FLUSH_S:
      self.flush()

  def flush(self) -> None:
    """Writes what waits in memory, for good.

    Raises:
      OSError: It cannot be written.
    """
    self._file.flush()  # With fsync; an object store gets the whole file.
    self._flushed = time.monotonic()

  def close(self) -> None:
    try:
      self._file.close()
    except OSError:
      # Or else Python tries, and tells, once more when it ends.
      with contextlib.suppress(OSError):
        self._file._py_recordio_writer.close()
      raise


class NoWriter:
  """Writes nothing: what processes other than the first have as a writer."""

  def write(self, line: dict) -> None: ...

  def picture(self, name: str, pixels: np.ndarray, step: int) -> None: ...

  def flush(self) -> None: ...

  def close(self) -> None: ...


def open_wandb(
  project: str,
  workdir: epath.PathLike,
  fields: Mapping[str, bool | int | float | str],
) -> Any:
  """Starts or continues the run of a folder in Weights & Biases.

  Args:
    project: Its name there; '': none.
    workdir: The run's folder.
    fields: The run's settings by dotted name.

  Returns:
    The run; None without a project.

  Raises:
    ConfigError: The package is not installed.
  """
  if not project:
    return None
  try:
    wandb = importlib.import_module('wandb')
  except ImportError as error:
    raise ConfigError(
      f'train.wandb_project={project!r} needs the package wandb, which is not '
      "installed: pip install wandb, or leave the field at ''"
    ) from error
  folder = epath.Path(workdir).resolve()
  return wandb.init(
    project=project,
    name=folder.name,
    # The same folder is the same run, also when it is resumed.
    id=hashlib.blake2b(os.fspath(folder).encode(), digest_size=8).hexdigest(),
    resume='allow',
    config=dict(fields),
  )
