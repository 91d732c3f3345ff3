"""The processes of a run as one sees them: they agree, and miss no death.

Process 0 has a connection to every other process, see meeting.py. A process
that dies closes its connections at once, so that the others, who may hang in a
collective that will never end, know who is gone.

Why not JAX's coordination service alone, which starts at the same address: it
takes a process for dead after a time-out, and aborts the others (SIGABRT).
Measured with 2 and 3 processes, where another than 0 died: they lived on for
10 s at a time-out of 10 s, 100 s at its default, 0.1 s with these connections.
An exchange, which comes with every step, took it 8 to 17 times as long. Nor can
it say who is missing at the start. Source: experiments/records/dead_process.

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
from typing import Any

from absl import flags

from mgjax import cli, stop_signal


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
    connections: Mapping[int, 'Connection'] | None = None,
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


class Connection:
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
      return parse(self._lines.readline())
    except (OSError, ValueError):  # Closed meanwhile.
      return None

  def close(self) -> None:
    # Before the file: `readline` holds that, and ends with this.
    with contextlib.suppress(OSError):
      self._socket.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
      self._lines.close()
    self._socket.close()


def parse(line: bytes) -> dict | None:
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
