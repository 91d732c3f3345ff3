"""What PROTOCOL.md decides: the learning rate, the point, the headline."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments import intervals
from experiments.runs import judged
from experiments.runs.run import Run
from experiments.tables import by_seed

# Points by which another learning rate must be better than the present one.
_BETTER = 1.0
# What a paragraph about a verdict begins with, and what it concludes of a
# baseline.
_VERDICTS = {
  'holds': (
    'What holds',
    f'it is as accurate as {{}}, by a margin of {judged.MARGIN} points',
  ),
  'fails': (
    'What does not hold',
    f'it is less accurate than {{}}, by more than {judged.MARGIN} points',
  ),
  'open': (
    'What is open',
    'it is not known whether it is as accurate as {}, by a margin of '
    f'{judged.MARGIN} points',
  ),
}
# What the point is compared with, by name without the table.
BASELINES = ('none-1', 'none-1.5')
# Level of the intervals of the headline's two looks.
_DECIDES = 0.975


def rate(arm: str) -> float | None:
  """The learning rate that tuning takes; None until all of its runs are there.

  The best on validation by the mean over seeds; the present one where that is
  less than a point worse.
  """
  runs = [run for run in judged.TUNING if run.grid == arm]
  found = by_seed.all_of(runs)
  means = {
    value: statistics.mean(found[run.name].validation.values())
    for value, run in zip(judged.RATES, runs, strict=True)
    if run.name in found
    and len(found[run.name].validation) == judged.TUNING_SEEDS
  }
  if len(means) < len(runs):
    return None
  best = max(means, key=lambda value: means[value])
  better = means[best] - means[judged.PRESENT_RATE] >= _BETTER
  return best if better else judged.PRESENT_RATE


def chosen(runs: Sequence[Run], seeds: int) -> Run | None:
  """The point of `both` that the headline judges, by validation alone.

  Of those at least as accurate as the baseline (the mean over seeds), the one
  with the fewest seconds; where there is none, the most accurate one.

  Args:
    runs: A front.
    seeds: How many every point has when it is complete.

  Returns:
    None until the front is complete, each point with the seconds of a run.
  """
  found = by_seed.all_of(runs)
  if any(
    run.name not in found
    or len(found[run.name].validation) < seeds
    or not found[run.name].train_s
    for run in runs
  ):
    return None
  mean = lambda run: statistics.mean(found[run.name].validation.values())
  seconds = lambda run: statistics.mean(found[run.name].train_s.values())
  points = [run for run in runs if run.grid == 'both']
  baseline = next(run for run in runs if run.name == points[0].baseline)
  equal = [run for run in points if mean(run) >= mean(baseline)]
  return min(equal, key=seconds) if equal else max(points, key=mean)


def headline_seeds(number: int) -> range:
  """The seeds of the headline's look after so many pairs."""
  first = judged.HEADLINE_FIRST_SEED
  return range(first, first + number)


class Look(NamedTuple):
  """What the protocol says of the headline at the last look that was due.

  Attributes:
    pairs: That it is of.
    interval: Of the mean difference, at the level that decides.
    verdict: 'holds', 'fails' or 'open'.
  """

  pairs: int
  interval: intervals.Interval
  verdict: str

  @property
  def is_last(self) -> bool:
    """Whether no further look is due."""
    return self.verdict != 'open' or self.pairs == judged.HEADLINE_LOOKS[-1]


def look(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Look | None:
  """Decides the headline.

  Args:
    ours: Accuracy on test of `both`, by seed.
    theirs: That of `none`.

  Returns:
    None before the first look: its seeds are not all there.
  """
  found = None
  for number in judged.HEADLINE_LOOKS:
    seeds = headline_seeds(number)
    if not ours.keys() & theirs.keys() >= set(seeds):
      break
    interval = intervals.of_paired_difference(
      *([values[s] for s in seeds] for values in (ours, theirs)), level=_DECIDES
    )
    verdict = 'open'
    if interval.low > -judged.MARGIN:
      verdict = 'holds'
    elif interval.high < -judged.MARGIN:
      verdict = 'fails'
    found = Look(number, interval, verdict)
    if verdict != 'open':
      break
  return found


class Compared(NamedTuple):
  """Records of the baseline and of a point of `both`.

  Attributes:
    none: Records of the baseline.
    both: Those of the point.
    point: Its run.
    look: What the headline's seeds decided; None while they are not all there.
  """

  none: by_seed.Seeds
  both: by_seed.Seeds
  point: Run
  look: Look | None

  def difference(self) -> str:
    """Top-1 on test, `both` minus `none`, in points."""
    return by_seed.paired(
      intervals.of_paired_difference, self.both.test, self.none.test, 2
    )

  def ratio(self) -> intervals.Interval | None:
    """Training seconds of `none` over those of `both`; None: no two pairs."""
    theirs, ours = (
      by_seed.of_one_machine(arm.train_s, self.both, self.none)
      for arm in (self.none, self.both)
    )
    return by_seed.of_pairs(intervals.of_paired_ratio, theirs, ours)

  def times_fewer_seconds(self) -> str:
    """That ratio, for a cell of a table."""
    return by_seed.text_of(ratio, 2) if (ratio := self.ratio()) else ''

  def takes_less_time(self) -> bool:
    """Whether all of the ratio's interval lies above 1."""
    ratio = self.ratio()
    return ratio is not None and ratio.low > 1

  def in_seconds(self, baseline: str) -> str:
    """What may be said of the time, as the end of a sentence.

    Args:
      baseline: What the text calls it.
    """
    if self.takes_less_time():
      return f'in {self.times_fewer_seconds()} times fewer seconds'
    return (
      f'and less time is not shown: the seconds of {baseline} are '
      f'{self.times_fewer_seconds()} times its own'
    )


def at_headline(baseline: Run, point: Run) -> Compared | None:
  """The headline's pairs, each of one machine and one code.

  Args:
    baseline: A run of `none`.
    point: The run of `both`.

  Returns:
    None while one of them has no record.
  """
  none, both = by_seed.read(baseline), by_seed.read(point)
  if not none or not both:
    return None
  none, both = (
    arm._replace(test=by_seed.of_one_machine(arm.test, both, none))
    for arm in (none, both)
  )
  decided = look(both.test, none.test)
  if decided:
    # All numbers are of the seeds that decided: runs for another question may
    # have added some.
    seeds = headline_seeds(decided.pairs)
    none, both = (by_seed.of_seeds(arm, seeds) for arm in (none, both))
  return Compared(none, both, point, decided)


def compared() -> list[Compared]:
  """What is known of equal accuracy at the point that validation chooses.

  Returns:
    For each of BASELINES the headline's pairs, and before they are all there
    those of the front, which chose the point; [] until the front is complete.
  """
  point = chosen(judged.FRONT, judged.FRONT_SEEDS)
  if not point:
    return []
  runs = {run.name: run for run in (*judged.FRONT, *judged.HEADLINE)}
  if judged.HEADLINE:
    last = judged.HEADLINE[-1]
    found = [at_headline(runs[f'headline/{name}'], last) for name in BASELINES]
    if all(one and one.look for one in found):
      return [one for one in found if one]
  return [
    Compared(
      by_seed.read(runs[f'front/{name}']), by_seed.read(point), point, None
    )
    for name in BASELINES
  ]


def headline() -> str:
  """What is known of multigrid's accuracy and seconds, as a paragraph."""
  if not (pair := compared()):
    return 'The front is not complete.'
  found, longer = pair
  _, _, length = found.point.name.rpartition('-')
  begin, verdict = 'What was measured', ''
  of = f'{len(found.both.test)} seeds, which chose these lengths'
  if found.look and longer.look:
    begin, said = _VERDICTS[found.look.verdict]
    _, also = _VERDICTS[longer.look.verdict]
    if said == also:
      verdict = f' So {said.format("either baseline")}'
    else:
      verdict = (
        f' So {said.format("the first baseline")}; and '
        f'{also.format("the longer one")}'
      )
    verdict += ' ([protocol](experiments/PROTOCOL.md#headline)).'
    if not (found.look.is_last and longer.look.is_last):
      verdict += ' What is open is judged once more, after 16 pairs.'
    numbers = dict.fromkeys([found.look.pairs, longer.look.pairs])
    of = f'{" and ".join(map(str, numbers))} new seeds, which chose nothing'
  both, none, more = (
    by_seed.mean_text(arm.test, 2)
    for arm in (found.both, found.none, longer.none)
  )
  code = ', '.join(
    dict.fromkeys(arm.code for arm in (found.both, found.none, longer.none))
  )
  return textwrap.fill(
    f'**{begin}:** a small SlowFast that was trained with multigrid, in '
    f"{length} times the baseline's epochs, has a top-1 of {both} % on 10,000 "
    f'generated test videos. The baseline has {none} %: a difference of '
    f'{found.difference()} points, {found.in_seconds("the baseline")}. A '
    f'baseline of 1.5 times the epochs has {more} %: a difference of '
    f'{longer.difference()} points, {longer.in_seconds("this one")}. These are '
    f'means over {of}, with 95 % intervals over seeds; seconds are those of a '
    'training on a CPU core with compiled programs in the cache (code of '
    f'{code}).{verdict}',
    width=120,
    break_on_hyphens=False,
  )
