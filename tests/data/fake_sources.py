"""Sources that are like a prepared one, but for one thing."""

from mgjax.data import sources
from mgjax.data.sources import Example, TimedLabel


class Damaged(sources.Source):
  """A source in which some videos cannot be decoded."""

  def __init__(self, source: sources.Source, bad: set[int]):
    self.source = source
    self.bad = bad
    self.label_names = source.label_names
    self.has_actions = source.has_actions

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index) -> Example:
    example = self.source[index]
    return example._replace(video=b'junk') if index in self.bad else example


class Few(sources.Source):
  """The first examples of a source."""

  def __init__(self, source: sources.Source, count: int):
    self.source = source
    self.count = count
    self.label_names = source.label_names
    self.has_actions = source.has_actions

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    return self.source[index]


class Acted(sources.Source):
  """A source whose videos have two actions, one in each half of 3 s."""

  def __init__(self, source: sources.Source):
    self.source = source
    self.label_names = source.label_names
    self.has_actions = True
    self.manifest_sha256 = None

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index) -> Example:
    example = self.source[index]
    actions = (TimedLabel(example.label, 0, 0.5), TimedLabel(0, 0.3, 99))
    return example._replace(label=None, actions=actions)
