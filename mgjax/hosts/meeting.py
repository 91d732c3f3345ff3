"""The processes of a run meet before JAX connects them.

Process 0 listens at the coordinator's address until all others have connected,
said who they are, and been answered. JAX's service starts there afterwards.
"""

import contextlib
import errno
import ipaddress
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any

from mgjax.errors import ConfigError, RunError
from mgjax.hosts.peers import Connection, Peers, parse

# Of a connection at the coordinator's port, before it is known whose it is.
_HELLO_S = 10.0
_MAX_HELLO_BYTES = 2**20
_MAX_UNHEARD = 64
_RETRY_S = 0.1


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
  opened: list[Connection] = []
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
  connections: dict[int, Connection] = {}
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
  opened.append(connection := Connection(connection, place[0]))
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
) -> Iterator[tuple[Connection, dict]]:
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
      found: list[Any] = wait(sockets, min(deadline - now, _RETRY_S))
      for ready in found:
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
        hello = parse(said)
        if _has_types(hello, index=int, count=int, host=str, settings=dict):
          yield Connection(ready, hello['host']), hello
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
