"""Processes of a run, played by threads of this one."""

import concurrent.futures
import signal
import socket
import sys
import threading
import time

import jax
import pytest
from absl import flags

from mgjax.cli import ConfigError, RunError
from mgjax.hosts import meeting, parallel, peers
from mgjax.hosts.peers import Peers


@pytest.fixture
def address():
  with socket.socket() as free:
    free.bind(('', 0))
    return f'localhost:{free.getsockname()[1]}'


def together(address, count, present=None, timeout_s=10.0, settings=None):
  """Futures of `meet`, by process."""
  pool = concurrent.futures.ThreadPoolExecutor(count)
  return {
    i: pool.submit(
      meeting.meet,
      address,
      count,
      i,
      settings=(settings or {}).get(i, {'seed': '0'}),
      timeout_s=timeout_s,
    )
    for i in (range(count) if present is None else present)
  }


def connect(address) -> socket.socket:
  """Connects as soon as somebody listens."""
  host, port = address.split(':')
  deadline = time.monotonic() + 10
  while True:
    try:
      return socket.create_connection((host, int(port)))
    except OSError:
      assert time.monotonic() < deadline
      time.sleep(0.01)


def close(group) -> None:
  for member in group:
    member.close()
  for thread in threading.enumerate():
    if thread.name.startswith('peer-'):
      thread.join(10)


def test_every_process_gets_the_values_of_all_in_order(address):
  group = [f.result() for f in together(address, 3).values()]
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    for step in range(50):
      got = list(
        pool.map(lambda p, step=step: p.exchange([step, p.index]), group)
      )
      assert got == [[[step, 0], [step, 1], [step, 2]]] * 3
  close(group)


def test_the_port_is_free_again_once_all_have_met(address):
  group = [f.result() for f in together(address, 2).values()]
  # What JAX's service asks for while the connections are still open.
  server = socket.create_server(('', int(address.rpartition(':')[2])))
  server.close()
  close(group)


def test_missing_processes_are_named_by_all_that_are_there(address):
  futures = together(address, 4, present=(0, 2), timeout_s=1.0)
  for future in futures.values():
    with pytest.raises(RunError, match=r'process\(es\) 1, 3 of 4 did not'):
      future.result()


def test_a_missing_first_process_is_named(address):
  (future,) = together(address, 2, present=(1,), timeout_s=0.5).values()
  with pytest.raises(RunError, match='process 0 of 2 did not answer at local'):
    future.result()


def test_processes_with_other_settings_are_refused_by_all(address):
  futures = together(address, 3, settings={2: {'seed': '1'}})
  for future in futures.values():
    with pytest.raises(ConfigError, match="process 2 .* seed='1', process 0"):
      future.result()


def test_a_stranger_at_the_port_does_no_harm(address):
  futures = together(address, 2, present=(0,))
  host, port = address.split(':')
  stranger = None
  while stranger is None:
    try:
      stranger = socket.create_connection((host, int(port)))
    except OSError:
      time.sleep(0.01)
  stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
  futures.update(together(address, 2, present=(1,)))
  stranger.close()
  close([f.result() for f in futures.values()])


STRANGERS = [
  b'5\n',
  b'"settings"\n',
  b'[]\n',
  b'null\n',
  b'{}\n',
  b'{"settings": 5, "index": 1, "count": 2, "host": "x"}\n',
  b'{"settings": {}, "index": "1", "count": 2, "host": "x"}\n',
  b'{"settings": {}, "index": true, "count": 2, "host": "x"}\n',
  b'[' * 100_000 + b'\n',
  b'\xff\x00\n',
  b'GET / HTTP/1.1\r\n\r\n',
  b'\x16\x03\x01 a client of TLS',
  b'',
]


@pytest.mark.parametrize('leaves', [True, False], ids=['leaves', 'stays'])
def test_whatever_comes_to_the_port_a_run_starts(address, leaves):
  futures = together(address, 2, present=(0,), timeout_s=60.0)
  strangers = []
  for said in STRANGERS:
    stranger = connect(address)
    stranger.sendall(said)
    strangers.append(stranger)
    if leaves:
      stranger.close()
  began = time.monotonic()
  futures.update(together(address, 2, present=(1,), timeout_s=60.0))
  group = [f.result() for f in futures.values()]
  # None of those who stay silent is waited for.
  assert time.monotonic() - began < meeting._HELLO_S
  for stranger in strangers:
    stranger.close()
  close(group)


def test_more_silent_connections_than_are_kept_do_no_harm(address, monkeypatch):
  monkeypatch.setattr(meeting, '_MAX_UNHEARD', 3)
  futures = together(address, 2, present=(0,), timeout_s=60.0)
  strangers = [connect(address) for _ in range(8)]
  # The five oldest are closed.
  for stranger in strangers[:5]:
    stranger.settimeout(10)
    assert stranger.recv(1) == b''
  futures.update(together(address, 2, present=(1,), timeout_s=60.0))
  close([f.result() for f in futures.values()])
  for stranger in strangers:
    stranger.close()


def test_a_byte_now_and_then_is_no_hello(address, monkeypatch):
  monkeypatch.setattr(meeting, '_HELLO_S', 0.3)
  futures = together(address, 2, present=(0,), timeout_s=60.0)
  stranger = connect(address)
  with pytest.raises(OSError):
    for _ in range(600):
      stranger.sendall(b' ')
      time.sleep(0.05)
  stranger.close()
  futures.update(together(address, 2, present=(1,), timeout_s=60.0))
  close([f.result() for f in futures.values()])


def test_a_line_without_end_is_cut_off(address, monkeypatch):
  monkeypatch.setattr(meeting, '_MAX_HELLO_BYTES', 1000)
  futures = together(address, 2, present=(0,), timeout_s=60.0)
  stranger = connect(address)
  with pytest.raises(OSError):
    for _ in range(600):
      stranger.sendall(b'x' * 1000)
      time.sleep(0.01)
  stranger.close()
  monkeypatch.setattr(meeting, '_MAX_HELLO_BYTES', 2**20)
  futures.update(together(address, 2, present=(1,), timeout_s=60.0))
  close([f.result() for f in futures.values()])


def test_another_program_at_the_address_is_named(address):
  server = socket.create_server(('', int(address.rpartition(':')[2])))
  (future,) = together(address, 2, present=(1,)).values()
  accepted, _ = server.accept()
  accepted.sendall(b'{"hello": "world"}\n')
  with pytest.raises(RunError, match='another program answers at localhost'):
    future.result()
  accepted.close()
  server.close()


def test_a_number_given_twice_is_told_to_both(address):
  # Nobody is number 3: process 0 hears all that come in this time.
  futures = [
    *together(address, 4, present=(0, 1, 2), timeout_s=3.0).values(),
    *together(address, 4, present=(1,), timeout_s=3.0).values(),
  ]
  for future in futures:
    with pytest.raises(ConfigError, match='process number 1 was given twice'):
      future.result()


# Where process 0 listens. Every address 127.x.y.z is one of this machine.

linux = pytest.mark.skipif(sys.platform != 'linux', reason='has only 127.0.0.1')


def is_heard(host: str, address: str) -> bool:
  """Whether somebody listens there; process 0 is known to do, somewhere."""
  try:
    socket.create_connection((host, int(address.rpartition(':')[2]))).close()
  except ConnectionRefusedError:
    return False
  return True


def resolve_as(monkeypatch, *answers) -> None:
  """Names resolve to these addresses, one call after the other; None: not."""
  resolve = socket.getaddrinfo
  left = list(answers)

  def resolve_name(host, *args, **kwargs):
    if host is None or host[0].isdigit():
      return resolve(host, *args, **kwargs)
    found = left.pop(0) if len(left) > 1 else left[0]
    if found is None:
      raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')
    return resolve(found, *args, **kwargs)

  monkeypatch.setattr(socket, 'getaddrinfo', resolve_name)


@linux
@pytest.mark.parametrize('host', ['localhost', '127.0.0.1'])
def test_a_run_within_a_machine_is_not_reachable_from_others(address, host):
  address = address.replace('localhost', host)
  futures = together(address, 2, present=(0,))
  connect(address.replace('localhost', '127.0.0.1')).close()
  assert not is_heard('127.0.0.2', address)
  futures.update(together(address, 2, present=(1,)))
  first, second = (f.result() for f in futures.values())
  assert (first.bound, second.bound) == (address, None)
  close([first, second])


@linux
def test_a_machine_that_calls_itself_127_0_1_1_listens_to_others(
  address, monkeypatch
):
  resolve_as(monkeypatch, '127.0.1.1')
  address = address.replace('localhost', 'node1')
  futures = together(address, 2, present=(0,))
  connect(address).close()
  assert is_heard('127.0.0.2', address)
  futures.update(together(address, 2, present=(1,)))
  group = [f.result() for f in futures.values()]
  assert group[0].bound == address.replace('node1', '[::]')
  close(group)


def test_behind_an_address_of_another_machine_process_0_listens_everywhere(
  address,
):
  service = address.replace('localhost', '192.0.2.254')  # Of no machine.
  futures = together(service, 2, present=(0,))
  futures.update(together(address, 2, present=(1,)))
  group = [f.result() for f in futures.values()]
  assert group[0].bound == address.replace('localhost', '[::]')
  close(group)


def test_jax_s_own_variable_says_where_process_0_listens(address, monkeypatch):
  service = address.replace('localhost', '192.0.2.254')
  monkeypatch.setenv('JAX_COORDINATOR_BIND_ADDRESS', address)
  futures = together(service, 2, present=(0,))
  futures.update(together(address, 2, present=(1,)))
  group = [f.result() for f in futures.values()]
  assert group[0].bound == address
  close(group)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason='has no IPv6')
def test_an_address_of_ipv6_stands_in_brackets(address):
  group = [
    f.result()
    for f in together(address.replace('localhost', '[::1]'), 2).values()
  ]
  close(group)


def test_a_port_that_is_taken_is_named(address):
  port = int(address.rpartition(':')[2])
  with socket.create_server(('127.0.0.1', port)):
    (future,) = together(address, 2, present=(0,)).values()
    with pytest.raises(RunError) as caught:
      future.result()
  assert str(caught.value) == (
    f'process 0 cannot listen at port {port}: Address already in use; is an '
    'earlier run still alive? Otherwise choose another port'
  )


def test_a_name_that_does_not_resolve_is_named(address, monkeypatch):
  resolve_as(monkeypatch, None)
  address = address.replace('localhost', 'node1')
  futures = together(address, 2, timeout_s=0.3)
  with pytest.raises(RunError, match='does not find itself at node1:.* give'):
    futures[0].result()
  with pytest.raises(RunError, match='did not answer at node1:.*not known'):
    futures[1].result()


def test_a_name_may_resolve_only_after_a_while(address, monkeypatch):
  resolve_as(monkeypatch, None, None, None, '127.0.0.1')
  address = address.replace('localhost', 'node1')
  close([f.result() for f in together(address, 2).values()])


def test_jax_s_service_listens_where_process_0_did(monkeypatch, endings):
  asked = {}

  def initialize(*unused, **options):
    asked.update(options)
    raise RunError('enough')

  met = Peers(0, {}, 2, 'localhost:1234')
  monkeypatch.setattr(parallel, 'meet', lambda *unused, **options: met)
  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  monkeypatch.setattr(parallel, 'find_devices', list)
  monkeypatch.setattr(parallel, '_try_collective', lambda *unused: None)
  start(
    '--coordinator_address=localhost:1234',
    '--num_processes=2',
    '--process_id=0',
  )
  assert endings == [1]
  assert asked['coordinator_bind_address'] == 'localhost:1234'


@linux
def test_a_connection_over_which_nothing_is_heard_ends_after_30_seconds(
  address,
):
  group = [f.result() for f in together(address, 2).values()]
  for member in group:
    (connection,) = member._connections.values()
    # One that waits for an answer to what it has sent, and one that does not.
    for option, value in (
      (socket.TCP_USER_TIMEOUT, 30_000),
      (socket.TCP_KEEPIDLE, 10),
      (socket.TCP_KEEPINTVL, 5),
    ):
      set_to = connection._socket.getsockopt(socket.IPPROTO_TCP, option)
      assert set_to == value
  close(group)


def test_a_process_that_a_signal_ends_at_once_ends_the_others(
  address, endings, capsys
):
  first, second = (f.result() for f in together(address, 2).values())
  second.tell_stopped(signal.SIGTERM)
  deadline = time.monotonic() + 10
  while not endings and time.monotonic() < deadline:
    time.sleep(0.01)
  assert endings[0] == 75
  assert 'process 1 of 2 (' in (said := capsys.readouterr().err)
  assert 'was stopped by SIGTERM' in said
  close([first, second])


@pytest.fixture
def endings(monkeypatch):
  """Exit codes of the processes that would have ended."""
  codes = []
  monkeypatch.setattr(peers, 'end', codes.append)
  return codes


def test_a_closed_connection_ends_the_others_with_75(address, endings, capsys):
  first, second, third = (f.result() for f in together(address, 3).values())
  third._connections[0]._socket.shutdown(socket.SHUT_RDWR)
  deadline = time.monotonic() + 10
  while len(endings) < 3 and time.monotonic() < deadline:
    time.sleep(0.01)
  # The third one too: it has lost the first. One that hears of it twice may
  # end twice here, where nothing ends.
  assert len(endings) >= 3 and set(endings) == {75}
  assert capsys.readouterr().err.count('process 2 of 3 (') == 2
  close([first, second, third])


def test_an_error_in_one_process_is_told_by_all(address, endings, capsys):
  first, second = (f.result() for f in together(address, 2).values())
  with second.guard():
    raise ConfigError('seed=1 is odd')
  deadline = time.monotonic() + 10
  while endings.count(2) < 2 and time.monotonic() < deadline:
    time.sleep(0.01)
  # The second one has not really ended here, and hears of it in turn.
  assert endings.count(2) >= 2
  assert capsys.readouterr().err.count('seed=1 is odd') >= 2
  close([first, second])


def test_a_process_alone_exchanges_with_itself_and_raises_as_usual():
  alone = Peers()
  assert alone.exchange('x') == ['x'] and alone.is_first
  with pytest.raises(KeyError), alone.guard():
    raise KeyError
  alone.close()


# From flags to processes.


def start(*argv) -> Peers:
  values = flags.FlagValues()
  peers.define_flags(values)
  values(['train', *argv])
  return parallel.start(values, {'seed': '1'})


def test_a_plain_machine_starts_no_cluster():
  assert start().count == 1


def test_one_process_in_a_slurm_job_is_alone(monkeypatch):
  for name, value in {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'node[1-2]',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': '1',
    'SLURM_LOCALID': '0',
  }.items():
    monkeypatch.setenv(name, value)
  assert start('--num_processes=1').count == 1


@pytest.mark.parametrize(
  'variables,host',
  [
    (
      {
        'SLURM_JOB_ID': '7',
        'SLURM_STEP_NODELIST': 'node[1-2]',
        'SLURM_NTASKS': '2',
        'SLURM_PROCID': '1',
        'SLURM_LOCALID': '0',
      },
      'node1',
    ),
    (
      {
        'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:3491',
        'OMPI_COMM_WORLD_SIZE': '2',
        'OMPI_COMM_WORLD_RANK': '1',
        'OMPI_COMM_WORLD_LOCAL_RANK': '0',
      },
      '10.96.0.1',
    ),
  ],
  ids=['SLURM', 'Open MPI'],
)
def test_clusters_are_detected(monkeypatch, variables, host):
  called = {}

  def meet(address, count, index, **unused):
    called.update(address=address, count=count, index=index)
    raise RunError('enough')

  monkeypatch.setattr(parallel, 'meet', meet)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(RunError, match='enough'):
    start()
  assert (called['count'], called['index']) == (2, 1)
  assert called['address'].startswith(f'{host}:')


@pytest.mark.parametrize(
  'argv,words',
  [
    (['--process_id=1'], '--coordinator_address and --num_processes missing'),
    (
      ['--coordinator_address=a:1', '--num_processes=2', '--process_id=2'],
      '--process_id=2 must be below',
    ),
    (
      ['--coordinator_address=a', '--num_processes=2', '--process_id=1'],
      "'host:port'",
    ),
    *(
      (
        [
          f'--coordinator_address={wrong}',
          '--num_processes=2',
          '--process_id=0',
        ],
        "'host:port', with a port from 1 to 65535",
      )
      for wrong in ('a..b:1', ':1', 'a:0', 'a:65536', 'a:x', '1234')
    ),
  ],
)
def test_flags_that_cannot_work_are_refused(argv, words):
  with pytest.raises(ConfigError, match=words):
    start(*argv)
