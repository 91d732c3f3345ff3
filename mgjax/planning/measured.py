"""What the programs of a network took on this machine, kept for later plans.

A small JSON file beside the compiled programs has the seconds of every program
that was measured here, by a training or by plan --compile. It is a help and
nothing more: a file that is damaged or cannot be written is ignored, with a
line on stderr.
"""

import collections
import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import math
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mgjax import environment, files
from mgjax.errors import ConfigError
from mgjax.grids import Grid

# A program: 'train', 'stats' or 'eval', and its grid. A step_cache.Program is
# equal to it.
Key = tuple[str, Grid]

_KINDS = ('train', 'stats', 'eval')
_FORMAT = 1
_MOST_NETWORKS = 100  # The oldest are dropped: the file is read by every plan.
_LAST_RUNS = 64  # Of a program, of which the median is taken.
_LOCK_S = 2.0  # So long a process waits for another one that writes.


@dataclasses.dataclass(frozen=True)
class Seconds:
  """Of one program; None: not measured.

  Attributes:
    run_s: Median of its runs.
    contended: Whether other programs were compiled during all of those.
    compile_s: Lowering and compiling it.
    load_s: Lowering it and reading it from the cache on disk.
    built_as: Hash of the settings with which the cache on disk has it.
  """

  run_s: float | None = None
  contended: bool = False
  compile_s: float | None = None
  load_s: float | None = None
  built_as: str = ''

  def updated(self, new: 'Seconds') -> 'Seconds':
    """These seconds with newer ones, where there are newer ones."""
    changes = {
      name: value
      for name in ('compile_s', 'load_s', 'built_as')
      if (value := getattr(new, name))
    }
    # Compilation takes cores from a step on a CPU: the median is then not that
    # of a run.
    if new.run_s and (not new.contended or self.contended or not self.run_s):
      changes |= {'run_s': new.run_s, 'contended': new.contended}
    return dataclasses.replace(self, **changes)


class Where(NamedTuple):
  """What the seconds of a network depend on.

  Attributes:
    settings: Hash of the settings that change what its programs cost.
    jax: Version.
    device: Kind, as JAX names it; 'cpu' for a CPU.
    num_devices: Devices that share each batch.
  """

  settings: str
  jax: str
  device: str
  num_devices: int


@dataclasses.dataclass(frozen=True)
class Network:
  """What was measured of one network.

  Attributes:
    where: What it depends on.
    programs: Seconds by program.
    checkpoint_s: Median hold-up of a training by a checkpoint; None: unknown.
    date: Of the newest measurement, in ISO 8601 and UTC.
  """

  where: Where
  programs: Mapping[Key, Seconds]
  checkpoint_s: float | None = None
  date: str = ''

  def updated(self, new: 'Network') -> 'Network':
    """This one with what is newer."""
    programs = dict(self.programs)
    for key, seconds in new.programs.items():
      programs[key] = programs.get(key, Seconds()).updated(seconds)
    return Network(
      self.where, programs, new.checkpoint_s or self.checkpoint_s, new.date
    )


class Collected:
  """Gathers the seconds of a training while it runs. Not thread-safe."""

  def __init__(self):
    new = lambda: collections.deque(maxlen=_LAST_RUNS)
    self._runs = collections.defaultdict(new)
    self._checkpoints = new()

  def add(self, key: Key, seconds: float, *, contended: bool = False) -> None:
    """Notes a run of a program; see `Seconds`."""
    self._runs[key, contended].append(seconds)

  def add_checkpoint(self, seconds: float) -> None:
    """Notes a hold-up by a checkpoint."""
    self._checkpoints.append(seconds)

  def programs(self) -> dict[Key, Seconds]:
    """The medians."""
    found: dict[Key, Seconds] = {}
    for (key, contended), runs in self._runs.items():
      new = Seconds(run_s=_median(runs), contended=contended)
      found[key] = found.get(key, Seconds()).updated(new)
    return found

  @property
  def checkpoint_s(self) -> float | None:
    """The median; None: there was no checkpoint."""
    return _median(self._checkpoints) if self._checkpoints else None


def _median(runs: Collection[float]) -> float:
  # The first run is slower: buffers, threads, choice of algorithms.
  return statistics.median([*runs][1:] or runs)


def path(folder: pathlib.Path) -> pathlib.Path:
  """The file of this kind of machine, in the folder of compiled programs.

  The folder may be one of several machines (a home on a network disk); the
  name of a host says less of its speed than its processor and cores.
  """
  machine = (
    platform.machine(),
    environment.cpu_name(),
    environment.num_cpus(),
  )
  return folder / f'measured-{hash_of(machine)[:12]}.json'


def hash_of(content: Any) -> str:
  """SHA-256 of JSON data."""
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def now() -> str:
  """The date of a measurement that is made now."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def read(file: pathlib.Path) -> list[Network]:
  """Reads what was measured; a file that cannot be used is named on stderr.

  Returns:
    The networks, from the oldest to the newest; [] where there is no file.
  """
  try:
    if not file.exists():
      return []
    content = files.read_json(file)
    if content.get('format') != _FORMAT:
      raise ValueError(f'its format is not {_FORMAT}')
    found = [_network(entry) for entry in content['networks']]
  except (ConfigError, OSError, ValueError, KeyError, TypeError) as error:
    print(
      f'{file} has no times of programs that can be used, and is ignored '
      f'({type(error).__name__}: {error})',
      file=sys.stderr,
    )
    return []
  return sorted(found, key=lambda network: network.date)


def find(
  networks: list[Network],
  settings: str,
  jax: str,
  num_devices: int,
  device: str | None = None,
) -> Network | None:
  """The newest measurement of a network.

  Args:
    networks: Of `read`.
    settings: See `Where`.
    jax: See `Where`.
    num_devices: See `Where`.
    device: See `Where`; None: any, for a plan that takes no device.
  """
  found = [
    network
    for network in networks
    if network.where.settings == settings
    and network.where.jax == jax
    and network.where.num_devices == num_devices
    and device in (None, network.where.device)
  ]
  return found[-1] if found else None


def load_share(networks: Iterable[Network]) -> float | None:
  """Median of loading a program over compiling it; None: unknown.

  Args:
    networks: Of which programs were both compiled and loaded.
  """
  found = [
    s.load_s / s.compile_s
    for network in networks
    for s in network.programs.values()
    if s.load_s and s.compile_s
  ]
  return statistics.median(found) if found else None


def add(file: pathlib.Path, new: Network) -> None:
  """Adds what was measured; where that cannot be written, nothing happens.

  Args:
    file: Of `path`.
    new: What was measured.
  """
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file):
      networks = {network.where: network for network in read(file)}
      old = networks.pop(new.where, None)
      networks[new.where] = old.updated(new) if old else new
      entries = [*networks.values()][-_MOST_NETWORKS:]
      content = {'format': _FORMAT, 'networks': [_entry(n) for n in entries]}
      files.write_text(file, json.dumps(content, indent=1) + '\n')
  except OSError as error:
    print(
      f'{file} cannot be written ({error.strerror or error}): later plans do '
      'not know what this took',
      file=sys.stderr,
    )


@contextlib.contextmanager
def _locked(file: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from adding at the same time."""
  with open(file.with_suffix('.lock'), 'a') as lock:
    end = time.monotonic() + _LOCK_S
    while True:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except OSError:
        # Some network disks have no locks. Without one, what another process
        # adds at this moment may be lost, which costs a measurement.
        if time.monotonic() > end:
          break
        time.sleep(0.02)
    yield


def _entry(network: Network) -> dict[str, Any]:
  """A network as JSON data."""
  return {
    **network.where._asdict(),
    'date': network.date,
    'checkpoint_s': network.checkpoint_s,
    'programs': [
      {'kind': kind, **grid._asdict(), **dataclasses.asdict(seconds)}
      for (kind, grid), seconds in network.programs.items()
    ],
  }


def _network(entry: Any) -> Network:
  """A network from JSON data.

  Raises:
    ValueError, KeyError, TypeError: It is none.
  """
  where = Where(
    settings=_typed(entry['settings'], str),
    jax=_typed(entry['jax'], str),
    device=_typed(entry['device'], str),
    num_devices=_typed(entry['num_devices'], int),
  )
  programs = {}
  for line in entry['programs']:
    grid = Grid(*(_typed(line[name], int) for name in Grid._fields))
    if line['kind'] not in _KINDS or min(grid) < 1:
      raise ValueError(f'{line["kind"]} {grid} is no program')
    programs[line['kind'], grid] = Seconds(
      run_s=_seconds(line['run_s']),
      contended=_typed(line['contended'], bool),
      compile_s=_seconds(line['compile_s']),
      load_s=_seconds(line['load_s']),
      built_as=_typed(line['built_as'], str),
    )
  return Network(
    where,
    programs,
    _seconds(entry['checkpoint_s']),
    _typed(entry['date'], str),
  )


def _typed(value: Any, kind: type) -> Any:
  if type(value) is not kind:
    raise TypeError(f'{value!r} is no {kind.__name__}')
  return value


def _seconds(value: Any) -> float | None:
  if value is None:
    return None
  if type(value) not in (int, float) or not 0 < value < math.inf:
    raise ValueError(f'{value!r} is no time')
  return float(value)
