"""The processes of one run: they meet, agree at every step, miss no death.

Process 0 listens at the coordinator's address; every other process connects
before JAX does and stays connected. A process that dies closes its connection
at once, so that the others, who may hang in a collective that will never end,
know within milliseconds who is gone. JAX's own service, which starts at the
same address afterwards, notices after a minute and aborts without a name.

Messages are lines of JSON.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

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
_ACCEPT_S = 0.1


class Peers:
  """The processes of a run as one of them sees them.

  Attributes:
    index: Number of this process.
    count: Number of processes.
  """

  def __init__(
    self,
    index: int = 0,
    connections: Mapping[int, '_Connection'] | None = None,
    count: int = 1,
  ):
    """Wraps open connections; without any, a process is alone.

    Args:
      index: Number of this process.
      connections: By number of process; process 0 has one to each of the
        others, which have one to process 0.
      count: Number of processes.
    """
    self.index = index
    self.count = count
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
      self._closed = True  # That the others end is no news from now on.
      name = f'process {self.index} of {self.count} ({socket.gethostname()})'
      self._tell({'ended': f'{name} ended: {error}', 'code': code})
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
    self._closed = True
    name = f'process {self.index} of {self.count} ({socket.gethostname()})'
    text = f'{name} was stopped by {signal.Signals(number).name}'
    self._tell({'ended': text, 'code': stop_signal.exit_code(number)})

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

  Args:
    address: 'host:port' of process 0; the port is free again afterwards.
    count: Number of processes.
    index: Number of this one.
    settings: Must be the same everywhere, for example the config's fields.
    timeout_s: Seconds to wait for the last process.

  Raises:
    RunError: Processes are missing; they are named.
    ConfigError: A process was started with other settings.
  """
  host, _, port = address.rpartition(':')
  deadline = time.monotonic() + timeout_s
  if index == 0:
    return _gather(int(port), count, settings, timeout_s, deadline)
  connection = _connect(host, int(port), count, timeout_s, deadline)
  connection.send(
    {
      'index': index,
      'count': count,
      'host': socket.gethostname(),
      # As process 0 will see it, tuples as lists.
      'settings': dict(settings),
    }
  )
  # Process 0 answers as late as at its own deadline.
  answer = connection.receive(timeout_s + 10)
  if answer is None:
    connection.close()
    raise RunError(f'process 0 of {count} ({address}) closed the connection')
  if not _has_types(answer, missing=str, differs=str):
    connection.close()
    raise RunError(
      f'another program answers at {address}; choose another port for process 0'
    )
  if answer['missing'] or answer['differs']:
    connection.close()
    _refuse(answer['missing'], answer['differs'])
  connection.send({'ready': True})
  return Peers(index, {0: connection}, count)


def _gather(port, count, settings, timeout_s, deadline) -> Peers:
  """Process 0's part of `meet`."""
  connections: dict[int, _Connection] = {}
  differs = ''
  own = json.loads(json.dumps(dict(settings)))
  with _listener(port) as server, _Hellos(server) as hellos:
    while len(connections) < count - 1:
      try:
        connection, hello = hellos.get(max(deadline - time.monotonic(), 0.01))
      except queue.Empty:
        break
      index, connection.host = hello['index'], hello['host']
      who = f'process {index} ({connection.host})'
      if hello['count'] != count:
        differs = f'{who} expects {hello["count"]} processes, process 0 {count}'
      elif index in connections or not 0 < index < count:
        differs = f'process number {index} was given twice'
      else:
        differs = differs or _difference(who, own, hello['settings'])
      connections[index] = connection
  absent = [str(i) for i in range(1, count) if i not in connections]
  missing = ''
  if absent and not differs:
    present = [f'{i} ({c.host})' for i, c in sorted(connections.items())]
    missing = (
      f'process(es) {", ".join(absent)} of {count} did not start within '
      f'{timeout_s:g} s; present are 0 ({socket.gethostname()})'
      + ''.join(f', {p}' for p in present)
    )
  for connection in connections.values():
    with contextlib.suppress(OSError):
      connection.send({'missing': missing, 'differs': differs})
  if missing or differs:
    for connection in connections.values():
      connection.close()
    _refuse(missing, differs)
  # The listening port is closed by now: JAX's service may have it.
  for connection in connections.values():
    connection.receive(10.0)
  return Peers(0, connections, count)


class _Hellos:
  """What the processes say that connect; whoever says anything else is ignored.

  A port scanner may connect and say nothing, or any bytes, for ever: everyone
  is heard in a thread of his own, and has the time and the length of a hello.
  """

  def __init__(self, server: socket.socket):
    self._server = server
    self._found: queue.SimpleQueue = queue.SimpleQueue()
    self._unheard: dict[_Connection, None] = {}  # In the order of arrival.
    self._closed = False

  def __enter__(self) -> '_Hellos':
    self._server.settimeout(_ACCEPT_S)
    self._thread = threading.Thread(target=self._accept, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *unused) -> None:
    """Closes the connections of all that nobody has asked for."""
    self._closed = True
    self._thread.join()  # Then the port is free.
    late = []
    with contextlib.suppress(queue.Empty):
      while True:
        late.append(self._found.get_nowait()[0])
    for connection in (*self._unheard.copy(), *late):
      connection.close()

  def get(self, timeout_s: float) -> tuple['_Connection', dict]:
    """Returns the next one who belongs to the run.

    Raises:
      queue.Empty: Nobody has come in this time.
    """
    return self._found.get(timeout=timeout_s)

  def _accept(self) -> None:
    while not self._closed:
      try:
        accepted, _ = self._server.accept()
        connection = _Connection(accepted)
      except TimeoutError:
        continue
      except OSError:  # Gone again; or there are too many of them.
        time.sleep(_ACCEPT_S)
        continue
      self._unheard[connection] = None
      for oldest in list(self._unheard)[:-_MAX_UNHEARD]:
        oldest.close()  # A process of a run would have spoken by now.
      threading.Thread(
        target=self._hear, args=(connection,), daemon=True
      ).start()

  def _hear(self, connection: '_Connection') -> None:
    hello = connection.receive(_HELLO_S, max_bytes=_MAX_HELLO_BYTES)
    self._unheard.pop(connection, None)
    if self._closed or not _has_types(
      hello, index=int, count=int, host=str, settings=dict
    ):
      connection.close()
    else:
      self._found.put((connection, hello))


def _has_types(message: Any, **types: type) -> bool:
  """Whether a message has these keys, with values of these types."""
  return isinstance(message, dict) and all(
    type(message.get(key)) is kind for key, kind in types.items()
  )


def _refuse(missing: str, differs: str) -> NoReturn:
  raise RunError(missing) if missing else ConfigError(differs)


def _difference(who: str, ours: dict, theirs: dict) -> str:
  """Names the first setting that differs, or returns ''."""
  for name in sorted(ours.keys() | theirs.keys()):
    if ours.get(name) != theirs.get(name):
      return (
        f'{who} was started with {name}={theirs.get(name)!r}, process 0 with '
        f'{ours.get(name)!r}; start all with the same command'
      )
  return ''


def _listener(port: int) -> socket.socket:
  try:
    if socket.has_dualstack_ipv6():
      return socket.create_server(
        ('', port), family=socket.AF_INET6, dualstack_ipv6=True
      )
    return socket.create_server(('', port))
  except OSError as error:
    raise RunError(
      f'process 0 cannot listen at port {port}: {error.strerror}; is an '
      'earlier run still alive? Otherwise choose another port'
    ) from error


def _connect(host, port, count, timeout_s, deadline) -> '_Connection':
  while True:
    try:
      left = max(deadline - time.monotonic(), 0.01)
      return _Connection(
        socket.create_connection((host, port), timeout=left), host
      )
    except OSError as error:
      if time.monotonic() > deadline:
        raise RunError(
          f'process 0 of {count} did not answer at {host}:{port} within '
          f'{timeout_s:g} s ({error}); was it started, and can this machine '
          'reach it?'
        ) from error
      time.sleep(0.2)


class _Connection:
  """Sends and receives lines of JSON."""

  def __init__(self, connection: socket.socket, host: str = ''):
    self.host = host
    self._socket = connection
    self._lock = threading.Lock()
    connection.settimeout(None)  # That of connecting.
    # A machine that lost its power or network never closes a connection:
    # after 10 + 4 * 5 silent seconds the kernel does.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in (
      ('TCP_KEEPIDLE', 10),
      ('TCP_KEEPINTVL', 5),
      ('TCP_KEEPCNT', 4),
    ):
      if hasattr(socket, option):  # Linux.
        number = getattr(socket, option)
        connection.setsockopt(socket.IPPROTO_TCP, number, value)
    self._lines = connection.makefile('rb')

  def send(self, message: dict) -> None:
    with self._lock:
      self._socket.sendall(json.dumps(message).encode() + b'\n')

  def receive(
    self, timeout_s: float | None = None, *, max_bytes: int = -1
  ) -> dict | None:
    """Returns the next message, or None where there will be none.

    Args:
      timeout_s: Seconds that it may take; None: any.
      max_bytes: What is longer is no message; -1: any length.
    """
    timer = None
    if timeout_s is not None:
      # Not a timeout of the socket, which a byte now and then would renew.
      timer = threading.Timer(timeout_s, self.close)
      timer.daemon = True
      timer.start()
    try:
      line = self._lines.readline(max_bytes)
      message = json.loads(line) if line.endswith(b'\n') else None
    # Closed meanwhile; no JSON; or nested deeper than Python can read.
    except (OSError, ValueError, RecursionError):
      return None
    finally:
      if timer:
        timer.cancel()
    return message if isinstance(message, dict) else None

  def close(self) -> None:
    # Before the file: `readline` holds that, and ends with this.
    with contextlib.suppress(OSError):
      self._socket.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
      self._lines.close()
    self._socket.close()


def end(code: int) -> None:
  """Ends the process, whatever its other threads are waiting for."""
  stop_signal.last_words()
  os._exit(code)
