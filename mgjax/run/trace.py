"""A profile of a few steps of a run."""

import os
from collections.abc import Callable

import jax
from etils import epath

from mgjax import files


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
    first = self._first_step
    if first is None or step not in (first, first + self.NUM_STEPS):
      return None
    drain()
    if step != first:
      return self.close()
    if self._record:
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
