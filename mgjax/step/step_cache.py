"""Compiles every program of a run ahead of its use, once.

A multigrid run needs one program per grid. All grids are known before step 0,
so a background thread compiles them in the order of their first use while
training already runs on the first. Nothing is ever traced again: a program
that was not planned is an error, not a silent recompilation.

`StepCache.of_step` is for any training: it takes what jax.jit or nnx.jit
returns.
"""

import atexit
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import jax

from mgjax.grids.schedule import Grid
from mgjax.step import compilation

_THREAD = 'compile'

# Names a program: a `Program` in a run, a Grid in a training of one step.
Key = TypeVar('Key')


class Program(NamedTuple):
  """Names a compiled program."""

  kind: str  # 'train', 'stats' or 'eval'.
  grid: Grid

  def __str__(self) -> str:
    return f'{self.kind} {self.grid}'


class StepCache(Generic[Key]):
  """Executables by program; an access waits until its compilation is done.

    with StepCache.of_step(jax.jit(step), schedule.grids, arguments) as steps:
      for number in range(schedule.total_steps):
        state = steps[schedule(number)](state, batch)

  Attributes:
    compile_s: Seconds spent lowering and compiling, by program.
    from_disk: Programs that the persistent cache already held.
    failed: The first program that could not be compiled; None: there is none.
    device_bytes: Memory of each device; 0: unknown.
  """

  def __init__(
    self,
    programs: Mapping[Key, Callable],
    *,
    platform: str | None = None,
    device_bytes: int = 0,
  ):
    """Starts compiling.

    Args:
      programs: For each program, in order of first use, a function without
        arguments that returns it lowered (`jax.jit(f).lower(...)`).
      platform: Of the devices that they are lowered for; None: of those where
        JAX runs what names no device.
      device_bytes: Memory of each of them: a program that takes more is as one
        that cannot be compiled; 0: unknown.
    """
    self.compile_s: dict[Key, float] = {}
    self.from_disk: set[Key] = set()
    self.failed: Key | None = None
    # An event for each, made before the thread starts: an access can wait for a
    # program whose turn has not come.
    self._done = {program: threading.Event() for program in programs}
    self._results = {}
    # Read by the thread between two programs; a bool needs no lock.
    self._closed = False
    self._current = None
    self._current_since = time.perf_counter()
    self._compiled_anew = False  # Whether a part of the current program was.
    self._platform = platform or jax.devices()[0].platform
    self.device_bytes = device_bytes
    compilation.options(self._platform)  # Here: trials are not a program's.
    # A daemon: a compilation cannot be stopped, and a command that ends in the
    # middle of one does not wait for it (`parallel.leave`). Python's own way
    # out does: XLA crashes where Python takes down what it works with.
    self._thread = threading.Thread(
      target=self._compile, args=(dict(programs),), name=_THREAD, daemon=True
    )
    # Before the start, so that a hit of the first program is not missed.
    jax.monitoring.register_event_listener(self._count_cache_hits)
    self._thread.start()
    atexit.register(self._end)

  @classmethod
  def of_step(
    cls,
    step: Any,
    grids: Iterable[Grid],
    arguments: Callable[[Grid], tuple],
    *,
    platform: str | None = None,
  ) -> 'StepCache[Grid]':
    """Starts compiling one step for every grid.

    Args:
      step: A function that jax.jit or nnx.jit has returned. (eqx.filter_jit
        takes arrays only, no shapes: eqx.partition a model, and jax.jit.)
      grids: In order of first use, such as `schedule.first_uses(first_step)`.
      arguments: From a grid to the step's positional arguments: arrays, or
        what `abstract` makes of them, or jax.ShapeDtypeStruct. Only shapes,
        types and shardings are read, in another thread: do not give it an
        array that a step donates.
      platform: See `StepCache`.
    """
    # Lowered by the thread too: tracing a large network takes seconds.
    # `grid=grid` binds this grid; without it all functions had the last one.
    return cls(
      {grid: lambda grid=grid: step.lower(*arguments(grid)) for grid in grids},
      platform=platform,
    )

  def __enter__(self) -> 'StepCache[Key]':
    return self

  def __exit__(self, *error: Any) -> None:
    self.close()

  def __getitem__(self, program: Key) -> Callable:
    """Returns the executable, once it is there.

    Raises:
      KeyError: The program was not planned.
    """
    # An error instead of a compilation: one that nobody planned would show as
    # nothing but a slow step, in the middle of a run of days.
    if program not in self._done:
      planned = ', '.join(str(p) for p in self._done)
      raise KeyError(f'{program} was not planned; planned are: {planned}')
    self._done[program].wait()
    result = self._results[program]
    # Raised in the thread that needs it: an exception in the other one would
    # be printed, and the run would wait for ever.
    if isinstance(result, BaseException):
      raise result
    return result

  def wait(self, program: Key, timeout_s: float) -> bool:
    """Waits for a planned program; returns whether an access would not wait."""
    # An unplanned one does not wait: the access itself says what is wrong.
    return program not in self._done or self._done[program].wait(timeout_s)

  def describe_wait(self) -> str:
    """What is being compiled, and since when: 'compiling 3 of 8, 12 s'."""
    number = sum(done.is_set() for done in self._done.values())
    seconds = time.perf_counter() - self._current_since
    number = min(number + 1, len(self._done))  # The last one may just be done.
    return f'compiling {number} of {len(self._done)}, {seconds:.0f} s'

  @property
  def is_done(self) -> bool:
    """Whether nothing is compiled any more."""
    return not self._thread.is_alive()

  def __len__(self) -> int:
    return len(self._done)

  def compiled(self, kind: str) -> int:
    """Number of finished programs of a kind."""
    return sum(
      isinstance(program, Program) and program.kind == kind
      for program in self.compile_s
    )

  def close(self, *, wait: bool = True) -> None:
    """Stops after the program that is being compiled.

    Args:
      wait: Whether to wait for that; without, the thread may outlive this.
    """
    if self._closed:
      return
    # Before the thread is waited for: it stops after its current program.
    self._closed = True
    if wait:
      self._end()
      atexit.unregister(self._end)
    jax.monitoring.unregister_event_listener(self._count_cache_hits)

  def _end(self) -> None:
    self._closed = True
    self._thread.join()

  def _compile(self, programs: dict[Key, Callable]) -> None:
    # One after the other: a compilation takes all cores, and what is needed
    # first should be there first.
    for program, lower in programs.items():
      if self._closed:
        return
      self._current, self._compiled_anew = program, False
      # Lowering counts: a run waits for it as well.
      start = self._current_since = time.perf_counter()
      try:
        self._results[program] = compilation.compile_program(
          lower(), self._platform, device_bytes=self.device_bytes
        )
        self.compile_s[program] = time.perf_counter() - start
      except BaseException as error:  # Raised where the program is needed.
        if isinstance(error, compilation.OutOfMemory):
          error = error.of(program)
        self._results[program] = error
        self.failed = self.failed or program
      # Set after an error, too: whoever waits must wake up to raise it.
      self._done[program].set()

  def _count_cache_hits(self, event: str, **unused) -> None:
    # JAX reports in the thread that compiles.
    if threading.current_thread() is not self._thread or not self._current:
      return
    if event == '/jax/compilation_cache/cache_misses':
      # On CPUs a step is two programs (step/split_step.py), and one of them may
      # be there from a run with other grids.
      self._compiled_anew = True
      self.from_disk.discard(self._current)
    elif event == '/jax/compilation_cache/cache_hits':
      if not self._compiled_anew:
        self.from_disk.add(self._current)


def abstract(tree: Any) -> Any:
  """The shapes, types and shardings of a tree's arrays; the rest as it is.

  It is what `StepCache.of_step` needs of a training's state.
  """

  def describe(leaf: Any) -> Any:
    if not hasattr(leaf, 'shape') or not hasattr(leaf, 'dtype'):
      return leaf  # Equinox keeps functions in its trees.
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None)
    )

  return jax.tree.map(describe, tree)


def is_compiling() -> bool:
  """Whether a compilation goes on, possibly of a cache that was closed."""
  return any(thread.name == _THREAD for thread in threading.enumerate())


def programs_folder() -> pathlib.Path:
  """Folder of compiled programs.

  Returns:
    $JAX_COMPILATION_CACHE_DIR, else ~/.cache/mgjax/programs.
  """
  # JAX's own variable first: a cluster may have one cache for all programs.
  return pathlib.Path(
    os.environ.get('JAX_COMPILATION_CACHE_DIR')
    or pathlib.Path.home() / '.cache' / 'mgjax' / 'programs'
  )


def use_persistent_cache() -> pathlib.Path:
  """Keeps compiled programs on disk, for later launches.

  Returns:
    The folder: see `programs_folder`.
  """
  folder = programs_folder()
  jax.config.update('jax_compilation_cache_dir', str(folder))
  # The default leaves out programs that compile within a second; a small
  # model's whole schedule would be compiled again.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)
  return folder
