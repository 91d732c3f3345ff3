"""progress.py: a bar on a terminal, lines in a log."""

import io
import re

import pytest

from mgjax import progress
from mgjax.grids import Grid
from mgjax.progress import Progress
from mgjax.run import step_log


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """Returns a function that sets the time."""
  now = [100.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])

  def set_time(seconds):
    now[0] = 100.0 + seconds

  return set_time


def test_a_log_gets_a_line_now_and_then_and_the_last(clock, capsys):
  bar = Progress(100, unit='clip')
  for second in range(60):
    clock(second)
    bar.update(second, f'left {second}')
  bar.update(100, 'left 0')
  bar.close()
  lines = capsys.readouterr().err.splitlines()
  assert lines == [
    'clip 0/100  left 0',
    'clip 20/100  left 20',
    'clip 40/100  left 40',
    'clip 100/100  left 0',
  ]


def test_what_is_said_after_the_end_is_a_line_now_and_then_too(clock, capsys):
  bar = Progress(3, unit='step')
  bar.update(3, 'left 0:00')
  for second in range(45):
    clock(second)
    bar.update(3, f'compiling 2 of 2, {second} s')
  bar.close()
  assert capsys.readouterr().err.splitlines() == [
    'step 3/3  left 0:00',
    'step 3/3  compiling 2 of 2, 20 s',
    'step 3/3  compiling 2 of 2, 40 s',
  ]


def test_a_terminal_gets_a_bar_with_the_text(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  bar = Progress(200, 100, unit='step')
  bar.say('a line above')
  bar.update(150, 'loss 1.25')
  bar.close()
  text = terminal.getvalue()
  assert 'a line above\n' in text
  assert re.search(r'\r150/200\|\S+ *\| loss 1.25', text)


def test_a_long_run_of_a_large_network_fits_80_columns(monkeypatch):
  said = step_log.progress_text(
    45908.0, Grid(32, 224, 224, 1024), 12.3456, 1234.5, 0.17
  )
  assert said == ('left 12:45:08  32x224x224 b1024  loss 12.346  no data 17 %')
  quick = step_log.progress_text(8.0, Grid(4, 32, 32, 8), 1.5, 71.6, 0.09)
  assert quick == 'left 0:08  4x32x32 b8  loss 1.500  72 clips/s'
  terminal = Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  bar = Progress(15000, 14000, unit='step')
  bar.update(14500, said)
  bar.close()
  assert max(map(len, re.split('[\r\n]', terminal.getvalue()))) <= 80
  assert len(f'step 14500/15000  {said}') <= 80


def test_time_left_is_at_the_pace_since_the_first(clock):
  bar = Progress(100, 40, unit='step', quiet=True)
  clock(1000.0)  # Processes start, say.
  assert bar.time_left(41) == 'left ?'
  clock(1030.0)
  # Twenty in thirty seconds, and thirty-nine to go.
  assert bar.time_left(61) == 'left 0:58'
  assert bar.time_left(100) == 'left 0:00'


def test_what_is_done_at_once_has_no_time_left(clock):
  assert Progress(1, unit='clip', quiet=True).time_left(1) == 'left 0:00'


def test_quiet_is_silent(capsys):
  bar = Progress(2, unit='step', quiet=True)
  bar.update(1, 'x')
  bar.say('y')
  bar.close()
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
  'seconds,text', [(0.4, '0:00'), (187.0, '3:07'), (3723.0, '1:02:03')]
)
def test_durations_by_hand(seconds, text):
  assert progress.duration(seconds) == text
