"""What a run reports: times, metrics.jsonl, TensorBoard, traces."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from mgjax import files
from mgjax.cli import ConfigError
from mgjax.run import run_folder


@dataclasses.dataclass
class Times:
  """Seconds of a run by what the device did. They add up to the run's time.

  Attributes:
    step_s: It computed training steps.
    data_s: It waited for a batch.
    compile_s: It waited for a program.
    other_s: It waited for anything else in the loop (Python, logging).
    eval_s: Evaluation, batch-norm statistics included.
    checkpoint_s: The loop was held up by checkpoints.
  """

  step_s: float = 0.0
  data_s: float = 0.0
  compile_s: float = 0.0
  other_s: float = 0.0
  eval_s: float = 0.0
  checkpoint_s: float = 0.0

  @property
  def train_s(self) -> float:
    """Training time: without compilation, evaluation and checkpoints."""
    return self.step_s + self.data_s + self.other_s

  @property
  def wait_fraction(self) -> float:
    """Share of the training time in which the device waited for data."""
    return self.data_s / self.train_s if self.train_s else 0.0

  def __sub__(self, other: 'Times') -> 'Times':
    return Times(
      *(
        getattr(self, f.name) - getattr(other, f.name)
        for f in dataclasses.fields(self)
      )
    )


@dataclasses.dataclass
class _InFlight:
  """A step that has been handed to the device."""

  report: Callable[[dict, float], None]
  metrics: dict
  asked_batch: float
  got_batch: float
  got_program: float
  called: float
  finished: concurrent.futures.Future


class StepClock:
  """Times steps that may run asynchronously.

  On accelerators the loop hands steps to the device before earlier ones have
  finished, so the host's own waiting says little. A thread notes when each
  step's result is there; a wait for data counts only from the end of the step
  before.
  """

  def __init__(self, times: Times, max_in_flight: int = 2):
    self.times = times
    self._max_in_flight = max_in_flight
    self._queue = collections.deque()
    self._watcher = concurrent.futures.ThreadPoolExecutor(1, 'step-clock')
    self._free_since = time.perf_counter()

  def dispatched(
    self,
    metrics: dict,
    *,
    asked_batch: float,
    got_batch: float,
    got_program: float,
    called: float,
    report: Callable[[dict, float], None],
  ) -> None:
    """Registers a step just handed to the device.

    Args:
      metrics: Its results, possibly still being computed.
      asked_batch: time.perf_counter() when the loop asked for its batch.
      got_batch: ... when the batch was there.
      got_program: ... when the program was there.
      called: ... when it was called.
      report: Called with the results as Python floats and the step's seconds
        on the device, once it has finished.
    """
    self._queue.append(
      _InFlight(
        report=report,
        metrics=metrics,
        asked_batch=asked_batch,
        got_batch=got_batch,
        got_program=got_program,
        called=called,
        finished=self._watcher.submit(_finish_time, metrics),
      )
    )
    while len(self._queue) > self._max_in_flight:
      self._harvest()

  def drain(self) -> None:
    """Waits for all steps."""
    while self._queue:
      self._harvest()

  def restart(self) -> None:
    """Marks the device as free from now: what came before was not a step."""
    self._free_since = time.perf_counter()

  def close(self) -> None:
    self._watcher.shutdown()

  def _harvest(self) -> None:
    step = self._queue.popleft()
    finished = step.finished.result()
    free = self._free_since
    data_s = max(0.0, step.got_batch - max(step.asked_batch, free))
    compile_s = max(0.0, step.got_program - max(step.got_batch, free))
    step_s = finished - max(step.called, free)
    self.times.data_s += data_s
    self.times.compile_s += compile_s
    self.times.step_s += step_s
    self.times.other_s += finished - free - step_s - data_s - compile_s
    self._free_since = finished
    step.report({k: float(v) for k, v in step.metrics.items()}, step_s)


def _finish_time(metrics: dict) -> float:
  jax.block_until_ready(metrics)
  return time.perf_counter()


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
        self._events.add(summary.scalar(name, value), line['step'])
    if self._wandb is not None:
      self._wandb.log(line, step=line['step'])

  def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
    """Adds a picture, uint8 [H, W, 3]."""
    self._events.add(summary.image(name, pixels, dataformats='HWC'), step)
    if self._wandb is not None:
      images = importlib.import_module('wandb')
      self._wandb.log({name: images.Image(pixels)}, step=step)

  def settings(self, config: ml_collections.ConfigDict, metric: str) -> None:
    """Adds the config as hyper-parameters, to be compared by a metric."""
    flat = flat_fields(config)
    for event in summary.hparams(flat, {metric: 0.0}):
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


def flat_fields(
  config: ml_collections.ConfigDict,
) -> dict[str, bool | int | float | str]:
  """Fields by dotted name; what is no number, truth value or text, as text."""
  fields = {}
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      inner = flat_fields(value).items()
      fields.update({f'{name}.{key}': item for key, item in inner})
    else:
      plain = isinstance(value, bool | int | float | str)
      fields[name] = value if plain else str(value)
  return fields


def open_wandb(
  config: ml_collections.ConfigDict, workdir: epath.PathLike
) -> Any:
  """Starts or continues the run of a folder in Weights & Biases.

  Returns:
    The run; None where train.wandb_project is empty.

  Raises:
    ConfigError: The package is not installed.
  """
  project = config.train.wandb_project
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
    config=flat_fields(config),
  )


class Trace:
  """Records a profile of a few steps, for TensorBoard, XProf and Perfetto.

  It goes to workdir/plugins/profile. A trace that fails does not end the run.
  """

  NUM_STEPS = 3  # A short cycle.

  def __init__(
    self,
    workdir: epath.PathLike,
    first_step: int | None,
    *,
    record: bool = True,
  ):
    """Plans the trace.

    Args:
      workdir: The run's folder.
      first_step: First step in it; None: no trace.
      record: Whether this process records it. Those that do not wait for the
        device at the same steps, so that all learn of errors at the same one.
    """
    self._workdir = os.fspath(workdir)
    self._first_step = first_step
    self._record = record
    self._running = False

  def before(self, step: int, drain: Callable[[], None]) -> str | None:
    """Starts or ends the trace where it is time for that.

    Args:
      step: The step that comes next.
      drain: Waits until the device has finished all earlier steps.

    Returns:
      What to tell the user, if anything.
    """
    if self._first_step is None:
      return None
    if step == self._first_step:
      drain()
      return self._start()
    if step == self._first_step + self.NUM_STEPS:
      drain()
      return self.close()
    return None

  def _start(self) -> str | None:
    if not self._record:
      return None
    try:
      jax.profiler.start_trace(
        self._workdir,
        # JAX writes that file, and knows no object store.
        create_perfetto_trace=not files.is_remote(self._workdir),
      )
    except Exception as error:
      return f'No trace: {error}'
    self._running = True
    return None

  def close(self) -> str | None:
    """Ends the trace, if there is one; returns what to tell the user."""
    if not self._running:
      return None
    self._running = False
    try:
      jax.profiler.stop_trace()
    except Exception as error:
      return f'The trace could not be written: {error}'
    return f'Trace of steps from {self._first_step}: {self._workdir}/plugins'
