"""The processes of one run: they meet, agree at every step, miss no death.

Process 0 listens at the coordinator's address; every other process connects
before JAX does and stays connected. A process that dies closes its connection
at once, so that the others, who may hang in a collective that will never end,
know within milliseconds who is gone. JAX's own service, which starts at the
same address afterwards, notices after a minute and aborts without a name.

Messages are lines of JSON.
"""

import contextlib
import errno
import ipaddress
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from absl import flags

from mgjax import cli, stop_signal
from mgjax.errors import ConfigError, RunError


def define_flags(values: flags.FlagValues) -> None:
  """Adds the flags that say which processes make up a run."""
  flags.DEFINE_string(
    'coordinator_address',
    os.environ.get('JAX_COORDINATOR_ADDRESS'),
    "'host:port' of process 0, at a free port. Cloud TPU, GKE, SLURM and Open "
    'MPI are detected and need none of these flags.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'num_processes',
    _integer(os.environ.get('JAX_NUM_PROCESSES')),
    'Processes of the run; 1: do not look for a cluster.',
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'process_id',
    _integer(os.environ.get('JAX_PROCESS_ID')),
    'Number of this process, from 0.',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'start_timeout_s',
    300,
    'Seconds to wait for all processes.',
    lower_bound=1,
    flag_values=values,
  )


def _integer(text: str | None) -> int | None:
  return int(text) if text else None


# Of a connection at the coordinator's port, before it is known whose it is.
_HELLO_S = 10.0
_MAX_HELLO_BYTES = 2**20
_MAX_UNHEARD = 64
_RETRY_S = 0.1


class Peers:
  """The processes of a run as one of them sees them.

  Attributes:
    index: Number of this process.
    count: Number of processes.
    bound: Where process 0 has listened, 'host:port', and JAX's service may;
      None in the others.
  """

  def __init__(
    self,
    index: int = 0,
    connections: Mapping[int, '_Connection'] | None = None,
    count: int = 1,
    bound: str | None = None,
  ):
    """Wraps open connections; without any, a process is alone.

    Args:
      index: Number of this process.
      connections: By number of process; process 0 has one to each of the
        others, which have one to process 0.
      count: Number of processes.
      bound: Where process 0 has listened.
    """
    self.index = index
    self.count = count
    self.bound = bound
    self._connections = dict(connections or {})
    self._received = {i: queue.SimpleQueue() for i in self._connections}
    self._closed = False
    for i in self._connections:
      threading.Thread(
        target=self._listen, args=(i,), name=f'peer-{i}', daemon=True
      ).start()

  @property
  def is_first(self) -> bool:
    """Whether this process is the one that writes files and speaks."""
    return self.index == 0

  def exchange(self, value: Any) -> list[Any]:
    """Gives every process the values of all, in the order of their numbers.

    All processes must call it equally often.

    Args:
      value: Anything that JSON can hold.
    """
    if self.count == 1:
      return [value]
    if self.index:
      self._connections[0].send({'value': value})
      return self._received[0].get()
    values = [value, *(self._received[i].get() for i in range(1, self.count))]
    self._tell({'value': values})
    return values

  @contextlib.contextmanager
  def guard(self) -> Iterator[None]:
    """Ends all processes where this one fails.

    What is raised inside ends this process at once where it is not alone:
    leaving in good order could wait for the others, and they for this one.
    """
    try:
      yield
    except Exception as error:
      if self.count == 1:
        raise
      # A collective fails here because a process has died elsewhere: its
      # closed connection says which, and ends this process in `_listen`.
      time.sleep(0.5)
      code = cli.report(error)
      self._tell_end(f'ended: {error}', code)
      end(code)

  def close(self) -> None:
    """Leaves: from now on this process may end."""
    self._closed = True
    self._tell({'bye': True})

  def tell_stopped(self, number: int) -> None:
    """Ends the other processes where a signal ends this one at once.

    Args:
      number: Of the signal.
    """
    self._tell_end(
      f'was stopped by {signal.Signals(number).name}',
      stop_signal.exit_code(number),
    )

  def _tell_end(self, how: str, code: int) -> None:
    self._closed = True  # That the others end is no news from now on.
    name = f'process {self.index} of {self.count} ({socket.gethostname()})'
    self._tell({'ended': f'{name} {how}', 'code': code})

  def _tell(self, message: dict) -> None:
    for connection in self._connections.values():
      with contextlib.suppress(OSError):
        connection.send(message)

  def _listen(self, peer: int) -> None:
    connection = self._connections[peer]
    name = f'process {peer} of {self.count} ({connection.host})'
    while True:
      message = connection.receive()
      if message is not None and 'value' in message:
        self._received[peer].put(message['value'])
        continue
      connection.close()
      if message is None and not self._closed:
        self._follow(f'{name} has died', cli.EXIT_RESTART)
      elif message is not None and 'ended' in message:
        self._follow(message['ended'], message['code'])
      return

  def _follow(self, text: str, code: int) -> None:
    """Ends this process, and through process 0 all the others."""
    print(
      f'error: {text}. This process ({self.index}) ends too; the same command '
      'in all processes goes on from the newest checkpoint.',
      file=sys.stderr,
    )
    if self.is_first:
      self._tell({'ended': text, 'code': code})
    end(code)


def meet(
  address: str,
  count: int,
  index: int,
  *,
  settings: Mapping[str, Any],
  timeout_s: float,
) -> Peers:
  """Waits until all processes are there and checks that they agree.

  Nobody else gets in: one who cannot name all settings is refused.

  Args:
    address: 'host:port' of process 0; the port is free again afterwards.
    count: Number of processes.
    index: Number of this one.
    settings: Must be the same everywhere, for example the config's fields.
    timeout_s: Seconds to wait for the last process.

  Raises:
    RunError: Processes are missing, and named; or process 0 cannot listen.
    ConfigError: A process was started with other settings.
  """
  opened: list[_Connection] = []
  try:
    if index == 0:
      return _gather(opened, address, count, dict(settings), timeout_s)
    return _join(opened, address, count, index, dict(settings), timeout_s)
  except BaseException:
    for connection in opened:
      connection.close()
    raise


def _gather(opened, address, count, settings, timeout_s) -> Peers:
  """Process 0's part of `meet`."""
  settings = json.loads(json.dumps(settings))  # As they come from the others.
  connections: dict[int, _Connection] = {}
  differs = missing = ''
  with (
    _listening(address, timeout_s) as (servers, bound),
    contextlib.closing(_hellos(servers, timeout_s)) as hellos,
  ):
    while len(connections) < count - 1 and (heard := next(hellos, None)):
      connection, hello = heard
      opened.append(connection)
      index = hello['index']
      who = f'process {index} ({connection.host})'
      if hello['count'] != count:
        differs = f'{who} expects {hello["count"]} processes, process 0 {count}'
      elif index in connections or not 0 < index < count:
        differs = f'process number {index} was given twice'
      else:
        differs = differs or _difference(who, settings, hello['settings'])
      connections[index] = connection
  absent = [str(i) for i in range(1, count) if i not in connections]
  if absent and not differs:
    present = [f'{i} ({c.host})' for i, c in sorted(connections.items())]
    missing = (
      f'process(es) {", ".join(absent)} of {count} did not start within '
      f'{timeout_s:g} s; present are 0 ({socket.gethostname()})'
      + ''.join(f', {p}' for p in present)
    )
  # Nobody listens at the port by now: those who are answered find JAX there.
  for connection in opened:
    with contextlib.suppress(OSError):
      connection.send({'missing': missing, 'differs': differs})
  _refuse(missing, differs)
  return Peers(0, connections, count, bound)


def _join(opened, address, count, index, settings, timeout_s) -> Peers:
  """The part of every other process in `meet`."""
  place, first = _split(address), f'process 0 of {count}'
  try:
    connection = _insist(
      lambda left_s: socket.create_connection(place, left_s), timeout_s
    )
  except OSError as error:
    raise RunError(
      f'{first} did not answer at {address} within {timeout_s:g} s ({error}); '
      'was it started, and can this machine reach it?'
    ) from error
  opened.append(connection := _Connection(connection, place[0]))
  hello = {'host': socket.gethostname(), 'settings': settings}
  connection.send({'index': index, 'count': count, **hello})
  # Process 0 answers as late as at its own deadline.
  answer = connection.receive(timeout_s + 10)
  if answer is None:
    raise RunError(f'{first} ({address}) closed the connection')
  if not _has_types(answer, missing=str, differs=str):
    raise RunError(
      f'another program answers at {address}; choose another port for process 0'
    )
  _refuse(answer['missing'], answer['differs'])
  return Peers(index, {0: connection}, count)


@contextlib.contextmanager
def _listening(
  address: str, timeout_s: float
) -> Iterator[tuple[list[socket.socket], str]]:
  """Listens where the others look for process 0, and only there if possible.

  Yields:
    Sockets, and their 'host:port' for JAX's service; '[::]' is everywhere.
  """
  # JAX's own variable, for those who know better.
  address = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS') or address
  host, port = _split(address)
  try:
    places = _insist(lambda _: _resolve(host, port), timeout_s)
  except OSError as error:
    raise RunError(
      f'process 0 does not find itself at {address} ({error}); give one of its '
      'IP addresses, or a name that all machines can resolve'
    ) from error
  ips = [place[0] for _, place in places]
  # Many a machine's name is 127.0.1.1 to itself (Debian), and to no other.
  if host not in ('localhost', *ips) and any(
    ipaddress.ip_address(ip).is_loopback for ip in ips
  ):
    places = []
  with contextlib.ExitStack() as opened:
    try:
      servers = _create_servers(opened, places)
      if not servers:
        # Something passes on what comes to the address: a service of
        # Kubernetes, a router (NAT). To which interface, nothing here can tell.
        address = f'[::]:{port}'
        servers = _create_servers(opened, _resolve(None, port))
    except OSError as error:
      raise RunError(
        f'process 0 cannot listen at port {port}: {os.strerror(error.errno)}; '
        'is an earlier run still alive? Otherwise choose another port'
      ) from error
    yield servers, address


def _create_servers(opened, places) -> list[socket.socket]:
  """Listens at those of the addresses that are this machine's."""
  servers = []
  for family, place in places:
    try:
      server = socket.create_server(place, family=family)
    except OSError as error:
      if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        raise
    else:
      server.setblocking(False)
      servers.append(opened.enter_context(server))
  return servers


def _hellos(
  servers: Sequence[socket.socket], timeout_s: float
) -> Iterator[tuple['_Connection', dict]]:
  """What the processes say that connect; whoever says anything else is ignored.

  A port scanner may connect and say nothing, or any bytes, for ever: all are
  heard side by side, and have the time and the length of a hello.
  """
  deadline = time.monotonic() + timeout_s
  # Since when, and what they have said; in the order in which they came.
  unheard: dict[socket.socket, tuple[float, bytes]] = {}
  try:
    while (now := time.monotonic()) < deadline:
      sockets = [*servers, *unheard]
      for ready in wait(sockets, min(deadline - now, _RETRY_S)):
        if ready in servers:
          with contextlib.suppress(OSError):  # Gone again.
            connection, _ = ready.accept()
            connection.setblocking(False)
            unheard[connection] = now, b''
          continue
        heard = b''
        with contextlib.suppress(OSError):
          heard = ready.recv(_MAX_HELLO_BYTES)
        since, said = unheard[ready]
        unheard[ready] = since, said = since, said + heard
        if heard and b'\n' not in heard and len(said) < _MAX_HELLO_BYTES:
          continue
        del unheard[ready]
        hello = _parse(said)
        if _has_types(hello, index=int, count=int, host=str, settings=dict):
          yield _Connection(ready, hello['host']), hello
        else:
          ready.close()
      # A process of the run would have spoken by now.
      late = [c for c, (since, _) in unheard.items() if now > since + _HELLO_S]
      for connection in {*late, *list(unheard)[:-_MAX_UNHEARD]}:
        del unheard[connection]
        connection.close()
  finally:
    for connection in unheard:
      connection.close()


def _has_types(message: dict | None, **types: type) -> bool:
  """Whether a message has these keys, with values of these types."""
  return message is not None and all(
    type(message.get(key)) is kind for key, kind in types.items()
  )


def _refuse(missing: str, differs: str) -> None:
  if missing:
    raise RunError(missing)
  if differs:
    raise ConfigError(differs)


def _difference(who: str, ours: dict, theirs: dict) -> str:
  """Names the first setting that differs, or returns ''."""
  for name in sorted(ours.keys() | theirs.keys()):
    if ours.get(name) != theirs.get(name):
      return (
        f'{who} was started with {name}={theirs.get(name)!r}, process 0 with '
        f'{ours.get(name)!r}; start all with the same command'
      )
  return ''


def _split(address: str) -> tuple[str, int]:
  """Host and port; the brackets of an IPv6 address are not part of it."""
  host, _, port = address.rpartition(':')
  return host.removeprefix('[').removesuffix(']'), int(port)


def _resolve(host: str | None, port: int) -> list[tuple]:
  """Families and addresses of a name; None: those of all interfaces."""
  found = socket.getaddrinfo(
    host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
  )
  return [(family, place) for family, *_, place in found]


def _insist(attempt: Callable[[float], Any], timeout_s: float) -> Any:
  """Repeats what the network refuses: it, or the other side, may come late.

  Args:
    attempt: Gets the seconds left.
    timeout_s: After so long the error is raised.
  """
  deadline = time.monotonic() + timeout_s
  while True:
    try:
      return attempt(max(deadline - time.monotonic(), 0.01))
    except OSError:
      if time.monotonic() > deadline:
        raise
      time.sleep(_RETRY_S)


class _Connection:
  """Sends and receives lines of JSON: unlike pickles, they cannot do harm."""

  def __init__(self, connection: socket.socket, host: str):
    self.host = host
    self._socket = connection
    self._lock = threading.Lock()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A machine that lost its power or network never closes a connection: the
    # kernel does after 30 s, silent ones or such in which something is unheard.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
      ('TCP_KEEPIDLE', 10),
      ('TCP_KEEPINTVL', 5),
      ('TCP_KEEPCNT', 4),
      ('TCP_USER_TIMEOUT', 30_000),
    ):
      if hasattr(socket, option):  # Linux.
        number = getattr(socket, option)
        connection.setsockopt(socket.IPPROTO_TCP, number, value)
    connection.settimeout(None)
    self._lines = connection.makefile('rb')

  def send(self, message: dict) -> None:
    with self._lock:
      self._socket.sendall(json.dumps(message).encode() + b'\n')

  def receive(self, timeout_s: float | None = None) -> dict | None:
    """Returns the next message, or None where there will be none in time."""
    self._socket.settimeout(timeout_s)
    try:
      return _parse(self._lines.readline())
    except (OSError, ValueError):  # Closed meanwhile.
      return None

  def close(self) -> None:
    # Before the file: `readline` holds that, and ends with this.
    with contextlib.suppress(OSError):
      self._socket.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
      self._lines.close()
    self._socket.close()


def _parse(line: bytes) -> dict | None:
  """Reads a message; None: it is none."""
  try:
    message = json.loads(line) if line.endswith(b'\n') else None
  except (ValueError, RecursionError):  # Nested deeper than Python can read.
    return None
  return message if isinstance(message, dict) else None


def end(code: int) -> None:
  """Ends the process, whatever its other threads are waiting for."""
  stop_signal.last_words()
  os._exit(code)
