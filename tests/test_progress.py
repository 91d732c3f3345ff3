"""progress.py: a bar on a terminal, lines in a log."""

import io

import pytest

from mgjax import progress
from mgjax.progress import Progress


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


def test_a_terminal_gets_a_bar_with_the_text(monkeypatch):
  terminal = Terminal()
  monkeypatch.setattr('sys.stderr', terminal)
  bar = Progress(200, 100, unit='step')
  bar.say('a line above')
  bar.update(150, 'loss 1.25')
  bar.close()
  text = terminal.getvalue()
  assert 'a line above\n' in text
  assert '150/200' in text and 'loss 1.25' in text and '75%' in text


def test_time_left_counts_from_where_it_started(clock):
  bar = Progress(100, 40, unit='step', quiet=True)
  clock(30.0)
  # Twenty in thirty seconds, and forty to go.
  assert bar.time_left(60) == 'left 1:00'


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
