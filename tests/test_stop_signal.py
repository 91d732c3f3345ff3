"""Signals are heard at any moment, and nothing that a run has done is lost."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from mgjax import stop_signal

FOLDER = pathlib.Path(__file__).parents[1]
DIGITS = 'configs/moving_digits.py:size=tiny'

pytestmark = pytest.mark.skipif(
  not os.path.exists('/proc/self/status'), reason='Linux tells what is caught'
)


def start(*argv) -> subprocess.Popen:
  """Starts Python in a process group of its own, like a shell does."""
  buffered = {k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'}
  return subprocess.Popen(
    [sys.executable, *argv],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=FOLDER,
    start_new_session=True,
    env=buffered,
  )


def wait_until(condition, process, timeout_s=120.0) -> None:
  deadline = time.monotonic() + timeout_s
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.01)


def is_installed(process) -> bool:
  """Whether the process catches SIGTERM; Python itself does not."""
  text = pathlib.Path(f'/proc/{process.pid}/status').read_text()
  (line,) = (s for s in text.splitlines() if s.startswith('SigCgt:'))
  return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def children(pid: int) -> list[int]:
  """All processes below one."""
  found = []
  for path in pathlib.Path(f'/proc/{pid}/task').glob('*/children'):
    # A thread may end between the two.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
      for child in map(int, path.read_text().split()):
        found += [child, *children(child)]
  return found


def is_alive(pid: int) -> bool:
  try:
    return 'State:\tZ' not in pathlib.Path(f'/proc/{pid}/status').read_text()
  except OSError:
    return False


def script(body: str) -> subprocess.Popen:
  """Runs `body` in a program that listens, and waits for its word 'ready'."""
  text = f'from mgjax import stop_signal\nstop_signal.install()\n{body}'
  process = start('-c', text)
  assert process.stdout.readline() == 'ready\n'
  return process


SWALLOW = """if True:
  print('ready', flush=True)
  while True:  # As a callback of the garbage collector does.
    try:
      sum(range(1000))
    except BaseException:
      pass
"""
# Python runs no handler of its own before this is over, in half an hour.
LONG = "__import__('hashlib').pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
IN_C = f"""if True:
  print('ready', flush=True)
  {LONG}
"""


@pytest.mark.parametrize('body', [SWALLOW, IN_C], ids=['swallow', 'in C'])
@pytest.mark.parametrize(
  'number,code,name',
  [(signal.SIGINT, 130, 'Ctrl-C'), (signal.SIGTERM, 75, 'SIGTERM')],
)
def test_a_signal_ends_a_process_that_has_nothing_to_lose_at_once(
  body, number, code, name
):
  process = script(body)
  process.send_signal(number)
  _, said = process.communicate(timeout=60)
  assert (process.returncode, said) == (code, f'stopped by {name}\n')


DEFERRING = """if True:
  import time
  with stop_signal.listening() as stop:
    stop.defer(lambda: 'the batch at hand')
    print('ready', flush=True)
    while not stop.received:
      time.sleep(0.01)
    print('heard', stop.received, flush=True)
    {then}
"""


def test_the_first_signal_is_noted_where_something_would_be_lost():
  process = script(DEFERRING.format(then='raise SystemExit(7)'))
  process.send_signal(signal.SIGINT)
  heard, said = process.communicate(timeout=60)
  assert (process.returncode, heard) == (7, 'heard 2\n')
  assert said == (
    'Ctrl-C: the process will end after the batch at hand; a second one ends '
    'it at once\n'
  )


@pytest.mark.parametrize('second', [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_at_once(second):
  process = script(DEFERRING.format(then=LONG))
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == 'heard 15\n'
  process.send_signal(second)
  _, said = process.communicate(timeout=60)
  assert process.returncode == stop_signal.exit_code(second)
  assert len(said.splitlines()) == 2
  assert said.splitlines()[1].startswith('stopped by a second signal, ')


def test_after_the_run_a_signal_ends_the_process_at_once_again():
  process = script(
    """if True:
    import time
    with stop_signal.listening() as stop:
      stop.defer(lambda: 'nothing')
    print('ready', flush=True)
    time.sleep(600)
  """
  )
  process.send_signal(signal.SIGTERM)
  assert process.wait(60) == 75
  process.communicate()


def test_what_has_been_printed_and_the_last_words_are_not_lost():
  process = script(
    """if True:
    import os, signal, time
    with stop_signal.listening() as stop:
      def say(number):
        print('last words', number)
      with stop.at_end(say), stop.at_end(lambda number: 1 / 0):
        print('ready', flush=True)
        print('printed')  # Stays in Python's buffer.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)
  """
  )
  printed, said = process.communicate(timeout=60)
  assert printed == 'printed\nlast words 15\n'
  assert said == 'stopped by SIGTERM\n'


def test_last_words_that_never_end_are_not_waited_for():
  process = script(
    """if True:
    import time
    with stop_signal.listening() as stop:
      with stop.at_end(lambda number: time.sleep(600)):
        print('ready', flush=True)
        time.sleep(600)
  """
  )
  process.send_signal(signal.SIGINT)
  assert process.wait(60) == 130
  process.communicate()


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_signals_of_a_forked_child_are_its_own():
  process = script(
    """if True:
    import os, signal, time, warnings
    warnings.simplefilter('ignore')  # Of a fork beside threads.
    child = os.fork()
    if not child:
      time.sleep(600)
    os.kill(child, signal.SIGTERM)
    status = os.waitpid(child, 0)[1]
    print('ready', flush=True)
    print(os.WTERMSIG(status), flush=True)
    time.sleep(600)
  """
  )
  assert process.stdout.readline() == f'{int(signal.SIGTERM)}\n'
  time.sleep(0.2)
  assert process.poll() is None  # The parent has not heard it.
  process.send_signal(signal.SIGINT)
  assert process.wait(60) == 130
  process.communicate()


def test_processes_that_a_command_starts_leave_ctrl_c_to_it():
  code = 'import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))'
  process = script(
    f"""if True:
    import subprocess, sys
    print('ready', flush=True)
    subprocess.run([sys.executable, '-c', {code!r}])
  """
  )
  masked, _ = process.communicate(timeout=60)
  assert 'SIGINT' in masked and 'SIGTERM' not in masked


def test_a_command_that_another_one_has_started_hears_ctrl_c():
  process = script(
    """if True:
    import os, sys
    os.execv(sys.executable, [sys.executable, '-c', '''if True:
      from mgjax import stop_signal
      stop_signal.install()
      print('ready', flush=True)
      import time
      time.sleep(600)
    '''])
  """
  )
  process.send_signal(signal.SIGINT)
  assert process.wait(60) == 130
  process.communicate()


def test_a_program_that_trains_has_its_own_handlers_back():
  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
  with stop_signal.listening() as stop:
    stop.defer(lambda: 'nothing')
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while stop.received is None and time.monotonic() < deadline:
      time.sleep(0.01)
    assert stop.received == signal.SIGTERM
    with pytest.raises(stop_signal.Stopped):
      stop.check(Alone())
  after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  assert after == before
  assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
  assert signal.set_wakeup_fd(-1) == -1


class Alone:
  def exchange(self, value):
    return [value]


# The commands.


@pytest.mark.parametrize(
  'command',
  [
    ['mgjax.train', f'--config={DIGITS}', '--workdir=W'],
    ['mgjax.evaluate', f'--config={DIGITS}', '--workdir=W'],
    ['mgjax.predict', f'--config={DIGITS}', '--workdir=.', 'README.md'],
    ['mgjax.plan', '--config=configs/kinetics400.py:grid=both'],
    ['mgjax.data.prepare', '--dataset=folder', '--videos=not_there'],
    ['experiments.tables', '--check'],
  ],
  ids=lambda command: command[0],
)
@pytest.mark.parametrize(
  'number,code,name',
  [(signal.SIGINT, 130, 'Ctrl-C'), (signal.SIGTERM, 75, 'SIGTERM')],
)
def test_a_command_hears_signals_from_its_start_on(command, number, code, name):
  stopped = 0
  for delay_s in (0.0, 0.3, 1.0):
    process = start('-m', *command)
    wait_until(lambda process=process: is_installed(process), process)
    time.sleep(delay_s)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if said.startswith('error: ') or process.returncode == 0:
      continue  # It had ended before.
    stopped += 1
    assert (process.returncode, said) == (code, f'stopped by {name}\n')
  assert stopped


BUSY_WORKER = """if True:
  import multiprocessing, time
  from mgjax.data import child_process
  # On a busy machine, a worker's thread that ends it may come late.
  work = '''(
    setattr(__import__('os'), '_exit', __import__('time').sleep),
    __import__('os').write(1, b'ready' + bytes([10])),
    __import__('time').sleep(0.5),
    __import__('os').write(2, b'a worker speaks'),
  )'''
  child_process.before_start()
  pool = multiprocessing.get_context('spawn').Pool(
    1, initializer=child_process.start
  )
  pool.apply_async(eval, (work,))
  time.sleep(60)
"""


def test_a_worker_in_the_middle_of_something_ends_before_it_can_speak():
  process = script(BUSY_WORKER)
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=60)
  assert (process.returncode, said) == (130, 'stopped by Ctrl-C\n')


STARTS_WORKERS = """if True:
  import multiprocessing, threading, time
  from mgjax.data import child_process
  child_process.before_start()
  context = multiprocessing.get_context('spawn')
  def start_another():
    while True:
      context.Process(target=child_process.start).start()
      print('ready', flush=True)
  for _ in range(2):
    threading.Thread(target=start_another, daemon=True).start()
  time.sleep(60)
"""


@pytest.mark.parametrize('wait_s', [0.0, 0.001, 0.003, 0.01])
def test_a_worker_that_is_just_started_does_not_complain(wait_s):
  process = script(STARTS_WORKERS)
  time.sleep(wait_s)
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=60)
  assert (process.returncode, said) == (130, 'stopped by Ctrl-C\n')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_no_process_that_prepares_data_outlives_the_command_or_speaks(
  tmp_path, number
):
  process = start(
    '-m',
    'mgjax.data.moving_digits',
    '--workers=2',
    f'--out={tmp_path}',
  )
  # While they import what they need; and what watches over shared memory.
  wait_until(lambda: len(children(process.pid)) >= 3, process)
  time.sleep(0.2)  # A child that has not heard what to do would complain.
  workers = children(process.pid)
  if number == signal.SIGINT:
    os.killpg(process.pid, number)  # As a terminal does.
  else:
    process.send_signal(number)  # As `kill` does.
  _, said = process.communicate(timeout=60)
  assert process.returncode == stop_signal.exit_code(number)
  name = 'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'
  # A slow machine may have made a clip by then, and says so.
  told = [
    line for line in re.split('[\r\n]', said) if not re.match('clip |$', line)
  ]
  assert told == [f'stopped by {name}']
  deadline = time.monotonic() + 60
  while any(map(is_alive, workers)):
    assert time.monotonic() < deadline
    time.sleep(0.05)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_no_data_worker_outlives_a_run_and_none_speaks(
  data_dir, tmp_path, number
):
  process = start(
    '-m',
    'mgjax.train',
    '--config=tests/speck.py:grid=none',
    f'--config.data.dir={data_dir}',
    '--config.data.worker_processes=2',
    '--config.optim.total_epochs=1000',
    '--config.optim.lr_steps=()',
    f'--workdir={tmp_path}',
  )
  # Two workers, and what Python starts to watch over shared memory.
  wait_until(lambda: len(children(process.pid)) >= 3, process)
  workers = children(process.pid)
  os.killpg(process.pid, number)  # As a terminal does.
  time.sleep(0.5)
  if process.poll() is None:  # There was something to lose.
    os.killpg(process.pid, number)
  _, said = process.communicate(timeout=60)
  assert process.returncode == stop_signal.exit_code(number)
  told = [line for line in said.splitlines() if 'stopped by' not in line]
  about = re.compile(r'step |\d+ grids, |grid=|waiting for |(Ctrl-C|SIGTERM): ')
  assert all(map(about.match, told)), said
  deadline = time.monotonic() + 60
  while any(map(is_alive, workers)):
    assert time.monotonic() < deadline
    time.sleep(0.05)
