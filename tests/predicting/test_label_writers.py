"""Labels as text, JSON lines, CSV and subtitles."""

import csv
import io
import json

import numpy as np
import pytest

from mgjax.predicting import smoothing
from mgjax.predicting.label_writers import WRITERS, Label


def label(start_s, end_s, *names, file='a.mp4'):
  predictions = [
    {'label': name, 'class': i, 'probability': 0.75 / (i + 1)}
    for i, name in enumerate(names)
  ]
  return Label(file, float(start_s), float(end_s), predictions)


# Windows of two seconds, every second; the last one ends with the video.
LABELS = [
  label(0, 2, 'walk', 'run'),
  label(1, 3, 'run', 'walk'),
  label(1.25, 3.25, 'a, "<b>"', 'two\nlines'),
]


def written(form, labels=LABELS):
  file = io.StringIO()
  writer = WRITERS[form](file)
  for found in labels:
    writer.write(found)
  writer.end()
  return file.getvalue()


def test_text_has_a_line_for_each_window_below_the_name():
  assert written('text', [*LABELS[:2], label(0, 2, 'jump', file='b.mp4')]) == (
    'a.mp4\n'
    '  00:00:00.000 - 00:00:02.000   75.00 %  walk   37.50 %  run\n'
    '  00:00:01.000 - 00:00:03.000   75.00 %  run   37.50 %  walk\n'
    'b.mp4\n'
    '  00:00:00.000 - 00:00:02.000   75.00 %  jump\n'
  )


def test_json_lines_have_an_object_for_each_window():
  lines = written('jsonl').splitlines()
  assert len(lines) == 3
  assert json.loads(lines[1]) == {
    'file': 'a.mp4',
    'start_s': 1,
    'end_s': 3,
    'predictions': [
      {'label': 'run', 'class': 0, 'probability': 0.75},
      {'label': 'walk', 'class': 1, 'probability': 0.375},
    ],
  }


def test_csv_has_a_row_for_each_label():
  rows = list(csv.DictReader(io.StringIO(written('csv'))))
  assert len(rows) == 6
  assert rows[4] == {
    'file': 'a.mp4',
    'start_s': '1.250',
    'end_s': '3.250',
    'rank': '1',
    'label': 'a, "<b>"',
    'probability': '0.750000',
  }
  assert rows[5]['label'] == 'two\nlines'


def test_subtitles_follow_each_other_without_a_gap():
  assert written('srt') == (
    '1\n00:00:00,000 --> 00:00:01,500\nwalk 75 %\nrun 38 %\n\n'
    '2\n00:00:01,500 --> 00:00:02,125\nrun 75 %\nwalk 38 %\n\n'
    '3\n00:00:02,125 --> 00:00:03,250\na, "<b>" 75 %\ntwo\\nlines 38 %\n\n'
  )


def test_subtitles_of_browsers_escape_what_is_no_name():
  text = written('vtt')
  assert text.startswith('WEBVTT\n\n1\n00:00:00.000 --> 00:00:01.500\nwalk')
  assert 'a, "&lt;b&gt;" 75 %' in text


@pytest.mark.parametrize('form', WRITERS)
def test_times_of_hours_have_hours(form):
  text = written(form, [label(3661, 3662.5, 'walk')])
  assert '01:01:02' in text or '3662.5' in text


def test_an_exponential_moving_average_begins_with_the_first_scores():
  smooth = smoothing.exponential_moving_average(0.25)
  found = [smooth(np.array([x, 1 - x]))[0] for x in (0.0, 1.0, 1.0)]
  assert found == [0.0, 0.25, 0.4375]


def test_a_moving_average_is_of_the_last_windows():
  smooth = smoothing.moving_average(2)
  found = [smooth(np.array([x, 1 - x]))[0] for x in (0.0, 1.0, 1.0, 0.5)]
  assert found == [0.0, 0.5, 1.0, 0.75]
