"""What the protocol decides, from made-up records."""

import pytest

from experiments import intervals
from experiments.runs import judged
from experiments.tables import decisions
from experiments.tables import judged as tables


def _front(add, both, none=97.0):
  """A front of equal seeds; `both`: validation and seconds of each point."""
  for seed in range(judged.FRONT_SEEDS):
    for run in judged.FRONT:
      if run.grid == 'none':
        add(run.name, seed, none, 99.0, 400.0)
      else:
        validation, seconds = both[run.name.split('-')[1]]
        # Test would choose the other way round.
        add(run.name, seed, validation, 100 - validation, seconds)


# Of each point validation and seconds, from the shortest.
@pytest.mark.parametrize(
  ('validation', 'seconds', 'name'),
  [
    pytest.param(
      (96.9, 97.0, 98.0, 99.0, 99.5),
      (50.0, 70.0, 80.0, 200.0, 300.0),
      'front/both-1',
      id='the cheapest that is as accurate as the baseline',
    ),
    pytest.param(
      (80.0, 85.0, 90.0, 96.0, 95.0),
      (50.0, 90.0, 120.0, 200.0, 300.0),
      'front/both-2',
      id='the most accurate where none reaches the baseline',
    ),
  ],
)
def test_validation_chooses_the_point(add, validation, seconds, name):
  pairs = zip(validation, seconds, strict=True)
  _front(add, dict(zip(('0.75', '1', '1.5', '2', '3'), pairs, strict=True)))
  assert decisions.chosen(judged.FRONT, 3).name == name


def test_nothing_is_chosen_before_the_front_is_complete(add):
  _front(add, dict.fromkeys(('0.75', '1', '1.5', '2', '3'), (98.0, 50.0)))
  assert decisions.chosen(judged.FRONT, 3)
  assert decisions.chosen(judged.FRONT, 4) is None


@pytest.mark.parametrize(
  ('accuracies', 'taken'),
  [
    ((96.0, 97.0, 97.9), 0.05),  # Better by less than a point.
    ((96.0, 97.0, 98.1), 0.1),
    ((98.2, 97.0, 97.6), 0.025),
  ],
)
def test_another_rate_is_taken_where_it_is_a_point_better(
  add, accuracies, taken
):
  for run in judged.TUNING:
    value = accuracies[judged.TUNING.index(run) % 3]
    assert decisions.rate(run.grid) is None
    add(run.name, run.first_seed, value)
  assert decisions.rate('none') == decisions.rate('both') == taken
  rows = tables.tuning_table().rows
  assert [row[0] for row in rows if row[3] == 'taken'] == [
    f'{arm}, optim.base_lr={taken}' for arm in judged.ARMS
  ]


def test_the_headline_is_of_the_point_that_validation_chooses():
  run = decisions.chosen(judged.FRONT, judged.FRONT_SEEDS)
  if run is None:
    assert judged.HEADLINE_LENGTH is None
  else:
    assert run.name == f'front/both-{judged.HEADLINE_LENGTH:g}'


def _pairs(differences):
  none = {10 + i: 96.0 + 0.1 * i for i in range(len(differences))}
  both = {s: none[s] + d for s, d in zip(none, differences, strict=True)}
  return both, none


WIDE = [1.0, -1.0] * 4


@pytest.mark.parametrize(
  ('differences', 'said'),
  [
    ([0.0] * 7, None),
    ([-0.4, -0.3] * 4, 'holds'),
    ([-0.7, -0.6] * 4, 'fails'),
    (WIDE, 'open'),
    # The second look comes after sixteen, and only where the first is open.
    (WIDE + [0.5] * 7, 'open'),
    (WIDE + [0.5] * 8, 'holds'),
    (WIDE + [-4.0, -4.4] * 4, 'fails'),
    ([-0.7, -0.6] * 4 + [9.0] * 8, 'fails'),
    # There is no third one.
    (WIDE * 2 + [0.5] * 80, 'open'),
  ],
)
def test_the_verdict_falls_at_two_looks(differences, said):
  found = decisions.look(*_pairs(differences))
  assert (found and found.verdict) == said


def test_a_look_is_of_the_seeds_that_the_protocol_names():
  both, none = _pairs([-0.4, -0.3] * 4)
  assert decisions.look(both, none).pairs == 8
  assert decisions.look({s: v for s, v in both.items() if s > 10}, none) is None
  later = [{s + 8: v for s, v in values.items()} for values in (both, none)]
  assert decisions.look(*later) is None
  # Pairs that come after the decision change nothing.
  more = [{**values, 18: 0.0} for values in (both, none)]
  assert decisions.look(*more) == decisions.look(both, none)


def test_the_looks_use_an_interval_of_975_percent():
  differences = [
    -0.25 + x for x in (0.4, -0.4, 0.3, -0.3, 0.1, -0.1, 0.2, -0.2)
  ]
  found = intervals.of_mean(differences)
  wider = intervals.of_mean(differences, 0.975)
  assert wider.low < found.low
  margin = judged.MARGIN
  shifted = [d - margin - (found.low + wider.low) / 2 for d in differences]
  found = decisions.look(*_pairs(shifted))
  assert found.verdict == 'open'
  assert found.interval == pytest.approx(intervals.of_mean(shifted, 0.975))
  assert intervals.of_mean(shifted).low > -margin


def test_nothing_is_chosen_while_a_point_has_no_seconds(add):
  for run in judged.FRONT:
    for seed in range(judged.FRONT_SEEDS):
      add(run.name, seed, 97.0, resumed=run.name == 'front/both-2')
  assert decisions.chosen(judged.FRONT, 3) is None


def test_the_rates_are_those_that_tuning_took():
  for arm in judged.ARMS:
    assert decisions.rate(arm) in (None, judged.RATE[arm])


def _said(add, decisions_of=()):
  points = dict.fromkeys(('0.75', '1', '1.5', '2', '3'), (96.0, 100.0))
  # The longer baseline decides as the other one does.
  decisions_of = [
    *decisions_of,
    *(
      ('none-1.5', v, 600.0) for name, v, _ in decisions_of if name == 'none-1'
    ),
  ]
  _front(add, points | {'1.5': (97.5, 200.0)})
  for arm, values, seconds in decisions_of:
    for seed, value in values.items():
      add(f'headline/{arm}', seed, 0.0, value, seconds)
  return ' '.join(decisions.headline().split())


def test_the_headline_says_nothing_before_the_front_is_complete(add):
  assert decisions.headline() == 'The front is not complete.'


def test_the_front_is_measured_and_judges_nothing(add, monkeypatch):
  monkeypatch.setattr(judged, 'HEADLINE', judged.headline(1.5))
  both, none = _pairs([-0.4, -0.3] * 3)
  # Six pairs of the headline are no look.
  said = _said(add, [('none-1', none, 300.0), ('both-1.5', both, 100.0)])
  assert said.startswith('**What was measured:**')
  assert "in 1.5 times the baseline's epochs" in said
  assert 'over 3 seeds, which chose these lengths, with 95 % int' in said
  assert said.endswith('in the cache (code of abcdef0).')
  assert '2.00 [2.00, 2.00] times fewer seconds' in said


@pytest.mark.parametrize(
  ('differences', 'begin', 'said'),
  [
    ([-0.4, -0.3] * 4, 'What holds', 'as accurate as either baseline, by'),
    ([-0.7, -0.6] * 4, 'What does not hold', 'either baseline, by more than'),
    (WIDE, 'What is open', 'it is not known whether'),
  ],
)
def test_the_headline_says_what_its_seeds_decided(
  add, monkeypatch, differences, begin, said
):
  monkeypatch.setattr(judged, 'HEADLINE', judged.headline(1.5))
  both, none = _pairs(differences)
  text = _said(add, [('none-1', none, 300.0), ('both-1.5', both, 100.0)])
  assert text.startswith(f'**{begin}:**')
  assert said in text and '(experiments/PROTOCOL.md#headline)' in text
  assert 'over 8 new seeds, which chose nothing' in text
  assert '3.00 [3.00, 3.00] times fewer seconds' in text


def test_less_time_is_said_only_where_the_whole_interval_says_it(
  add, monkeypatch
):
  monkeypatch.setattr(judged, 'HEADLINE', judged.headline(1.5))
  both, none = _pairs([-0.4, -0.3] * 4)
  said = _said(add, [('none-1', none, 300.0)])
  for seed, value in both.items():
    add('headline/both-1.5', seed, 0.0, value, 250.0 if seed % 2 else 450.0)
  said = ' '.join(decisions.headline().split())
  # The ratio to 300 s is 0.67 or 1.2, and that to 600 s 1.33 or 2.4.
  assert 'and less time is not shown: the seconds of the baseline are' in said
  assert 'in 1.79 [' in said and said.count('times fewer seconds') == 1
  first, second = tables.headline_table(judged.HEADLINE).rows
  assert (first[9], second[9]) == ('not shown', 'shown')


def test_each_question_has_the_seeds_of_its_own_look(add, monkeypatch):
  monkeypatch.setattr(judged, 'HEADLINE', judged.headline(1.5))
  # Against the shorter baseline 8 pairs decide, against the longer one none.
  for seed in range(10, 26):
    add('headline/none-1', seed, 0.0, 96.0, 300.0)
    longer = 96.0 + (-1) ** seed if seed < 18 else 95.5
    add('headline/none-1.5', seed, 0.0, longer, 450.0)
    late = seed >= 18
    add('headline/both-1.5', seed, 0.0, 96.0, 900.0 if late else 100.0)
  first, second = tables.headline_table(judged.HEADLINE).rows
  assert first[2] == '8' and first[7:9] == ('holds', '3.00 [3.00, 3.00]')
  assert second[2] == '16' and second[7] == 'holds'
  _front(add, dict.fromkeys(('0.75', '1', '1.5', '2', '3'), (98.0, 50.0)))
  said = ' '.join(decisions.headline().split())
  assert 'over 8 and 16 new seeds' in said


def test_nobody_looks_before_a_look_is_due(add, monkeypatch):
  monkeypatch.setattr(judged, 'HEADLINE', judged.headline(1.5))
  for seed in range(10, 26):
    if seed == 17:
      (row, _) = tables.headline_table(judged.HEADLINE).rows
      assert row[2:10] == ('7', *[''] * 7)
    if seed == 18:
      (row, _) = tables.headline_table(judged.HEADLINE).rows
      assert row[7] == 'open; one more look is due'
    for name, value in (
      ('none-1', 96.0),
      ('none-1.5', 96.0),
      ('both-1.5', 96.0 + (-1) ** seed),
    ):
      add(f'headline/{name}', seed, 0.0, value)
