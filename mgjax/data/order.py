"""An endless order of clips: which example a step shows, by the step alone.

Training reads one endless stream of clips. Clip number c shows the example at
position c % N of epoch c // N, and every epoch is a permutation of its own, so
each example is shown once per epoch whatever the grids are. (With n clips per
example it is shown by n clips in a row, so clip c has position c // n.)
`BalancedOrder` shows rare classes more often. Nothing is kept from one clip to
the next: a run resumes from its step, and any host makes its share of any batch
by itself. Examples are numbers here; what they are (videos
of a prepared data set, rows of an array) is the caller's business.
"""

import dataclasses
import functools
import hashlib

import numpy as np
from grain import experimental as grain_experimental

from mgjax.grids.schedule import GridSchedule


@dataclasses.dataclass(frozen=True)
class Order:
  """Maps clip numbers, and with a schedule steps, to numbers of examples.

    order = Order(num_examples=len(videos), seed=0)
    for step in range(first_step, schedule.total_steps):
      batch = videos[order.batch(schedule, step)]

  Attributes:
    num_examples: N, at least 1; examples are numbered from 0 to N - 1.
    seed: At least 0. Another seed has another order in every epoch.
    shard: This host's number among those that share every batch, in
      [0, num_shards).
    num_shards: Number of these hosts, at least 1.
    clips_per_example: n, how many clips in a row show an example, at least 1:
      "repeated augmentation". An epoch has n * num_examples clips.

  Raises:
    ValueError: A number is outside its range.
  """

  num_examples: int
  seed: int = 0
  shard: int = 0
  num_shards: int = 1
  clips_per_example: int = 1

  def __post_init__(self):
    if self.num_examples < 1:
      raise ValueError(f'num_examples={self.num_examples}: give at least 1')
    if self.seed < 0:
      raise ValueError(f'seed={self.seed}: give 0 or more')
    if not 0 <= self.shard < self.num_shards:
      raise ValueError(
        f'shard={self.shard}: give a number in [0, {self.num_shards})'
      )
    if self.clips_per_example < 1:
      raise ValueError(
        f'clips_per_example={self.clips_per_example}: give at least 1'
      )

  def siblings(self, clip: int | np.integer) -> range:
    """Returns the numbers of the clips that show what a clip shows.

    Args:
      clip: Number of the clip in the stream, 0 or more.
    """
    first = int(clip) - int(clip) % self.clips_per_example
    return range(first, first + self.clips_per_example)

  def example(self, clip: int | np.integer) -> int:
    """Returns the number of the example that a clip shows.

    Args:
      clip: Number of the clip in the stream, 0 or more.
    """
    epoch, position = divmod(
      int(clip) // self.clips_per_example, self.num_examples
    )
    return self._shuffled(position, self.num_examples, epoch)

  def _shuffled(self, position: int, size: int, *key: int) -> int:
    """Where a shuffle of `size` places, which the key names, takes one."""
    return grain_experimental.index_shuffle(
      index=position,
      max_index=size - 1,
      # Not seed + epoch: run 1 would have the orders of run 0, an epoch later.
      seed=_hash32(self.seed, *key),
      rounds=4,
    )

  def replacement(self, clip: int | np.integer, attempt: int) -> int:
    """Returns the example shown where that of a clip cannot be read.

    It is the same in every run, so that a run with a damaged example resumes
    and replays exactly, too.

    Args:
      clip: Number of the clip.
      attempt: Number of examples that have failed in this clip, 1 or more.
    """
    # All clips of an example have the same replacement.
    first = self.siblings(clip)[0]
    return _hash32(self.seed, first, attempt) % self.num_examples

  def generator(self, clip: int | np.integer) -> np.random.Generator:
    """Returns a generator for all that is drawn at random for a clip.

    It depends on (seed, clip) and nothing else (Philox counts, it keeps no
    state), so that frames, crop and flip of a clip are the same after a
    resumption, in any thread and on any host.
    """
    return np.random.Generator(np.random.Philox(key=[self.seed, int(clip)]))

  def share(self, first: int, batch: int) -> range:
    """Returns the clip numbers that this shard has of a batch.

    Args:
      first: Number of the batch's first clip.
      batch: Clips of all shards, a multiple of num_shards.

    Raises:
      ValueError: The shards cannot share the batch evenly.
    """
    size, rest = divmod(batch, self.num_shards)
    if rest:
      raise ValueError(
        f'{self.num_shards} shards cannot share a batch of {batch} clips evenly'
      )
    start = first + self.shard * size
    return range(start, start + size)

  def clips(self, schedule: GridSchedule, step: int) -> range:
    """Returns the clip numbers that this shard has of a step's batch.

    Args:
      schedule: Tells the clips before a step and those in it.
      step: In [0, schedule.total_steps).
    """
    return self.share(schedule.clips_before(step), schedule(step).batch)

  def batch(self, schedule: GridSchedule, step: int) -> np.ndarray:
    """Returns the examples that this shard shows at a step.

    Args:
      schedule: See `clips`.
      step: See `clips`.

    Returns:
      int64 [b], numbers of examples, with b = batch / num_shards.
    """
    clips = self.clips(schedule, step)
    return np.array([self.example(clip) for clip in clips], np.int64)


def _hash32(*numbers: int | np.integer) -> int:
  """A 32-bit hash of integers, the same on every machine and version."""
  # As Python's integers: NumPy's have a repr of their own.
  text = repr(tuple(map(int, numbers)))
  digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
  return int.from_bytes(digest, 'little')


@dataclasses.dataclass(frozen=True)
class BalancedOrder(Order):
  """An order in which rare classes are shown more often than once per epoch.

  An epoch has as many clips as ever. Each class has a fixed number of them,
  its quota, at positions that every epoch shuffles anew. The examples of a
  class take turns in its clips, from one epoch to the next, so that each is
  shown as often as any other of the class, give or take one.

  Attributes:
    labels: Class of every example; -1: it is not known, and not shown.
    power: A class of n examples has a quota in proportion to
      n ** (1 - power): 1 shows all classes equally often; above 0.
  """

  labels: tuple[int, ...] = ()
  power: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    if len(self.labels) != self.num_examples:
      raise ValueError(
        f'{len(self.labels)} labels cannot be those of {self.num_examples} '
        'examples'
      )
    if not any(label >= 0 for label in self.labels):
      raise ValueError('labels: no example has a class')

  @functools.cached_property
  def _classes(self) -> list[np.ndarray]:
    """Examples of each class that has some."""
    labels = np.array(self.labels)
    return [np.flatnonzero(labels == k) for k in np.unique(labels[labels >= 0])]

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """Quotas of these classes, added up."""
    counts = np.array([len(members) for members in self._classes])
    shares = counts ** (1.0 - self.power)
    # Added up before they are rounded: together they are the clips of an epoch.
    # A class has one at least, as the rarest gets more than its share.
    ends = np.cumsum(shares) / shares.sum() * self.num_examples
    return np.floor(ends.round(6) + 0.5).astype(np.int64)

  def example(self, clip: int | np.integer) -> int:
    epoch = int(clip) // self.clips_per_example // self.num_examples
    place = super().example(clip)  # Shuffled: in [0, N), each once per epoch.
    number = int(np.searchsorted(self._ends, place, side='right'))
    first = int(self._ends[number - 1]) if number else 0
    quota = int(self._ends[number]) - first
    members = self._classes[number]
    # After the clips that the class had in earlier epochs.
    turn, position = divmod(epoch * quota + place - first, len(members))
    # Every turn of all members has an order of its own.
    chosen = self._shuffled(position, len(members), number, turn)
    return int(members[chosen])
