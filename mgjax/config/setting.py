"""How a setting is declared: its default and its accepted values, in one line.

A section of settings is a dataclass whose fields are made by `setting`. The
comment above a field says what it means, and its unit.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple


class Accepted(NamedTuple):
  """The values that a setting takes.

  Attributes:
    text: Completes 'it must be ...'.
    test: Whether a value is one of them. It may raise a TypeError, which
      means that it is not.
  """

  text: str
  test: Callable[[Any], bool]

  def has(self, value: Any) -> bool:
    """Whether a value is accepted, of whatever type it is."""
    try:
      return bool(self.test(value))
    except TypeError:  # An override of a tuple may have any type.
      return False


def setting(default: Any, accepted: Accepted | None = None) -> Any:
  """Declares a field of a dataclass.

  Args:
    default: Its value where nothing is said. None means "not set".
    accepted: What else it takes; None: any value of its type.
  """
  return dataclasses.field(default=default, metadata={'accepted': accepted})


def declare(
  name: str, kind: Any, default: Any, accepted: Accepted | None
) -> dataclasses.Field:
  """Makes a field outside of a dataclass.

  Args:
    name: Its name.
    kind: Its type, as it would be annotated.
    default: As that of `setting`.
    accepted: As that of `setting`.
  """
  declared = [(name, kind, setting(default, accepted))]
  return dataclasses.fields(dataclasses.make_dataclass('Section', declared))[0]


def like(field: dataclasses.Field) -> Any:
  """Declares a field with the default and the accepted values of another."""
  return setting(field.default, accepted(field))


def as_tuples(value: Any) -> Any:
  """Lists, also nested ones, as tuples: JSON has lists only."""
  if isinstance(value, list | tuple):
    return tuple(map(as_tuples, value))
  return value


def is_number(value: Any) -> bool:
  """Whether a value is a finite number; a truth value is none."""
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and -math.inf < value < math.inf
  )


def accepted(field: dataclasses.Field) -> Accepted | None:
  """What `setting` was given for a field."""
  return field.metadata.get('accepted')


def at_least(number: int) -> Accepted:
  """Numbers from this one on."""
  return Accepted(f'{number} or more', lambda v: number <= v < math.inf)


def optional(values: Accepted) -> Accepted:
  """These values, or None."""
  return Accepted(
    f'{values.text}, or not set', lambda v: v is None or values.test(v)
  )


def within(interval: str) -> Accepted:
  """Numbers of an interval, written as in mathematics: '[0, 1)'."""
  low, high = map(float, interval[1:-1].split(','))
  return Accepted(
    f'in {interval}',
    lambda v: (
      (low < v or (low == v and interval[0] == '['))
      and (v < high or (v == high and interval[-1] == ']'))
    ),
  )


def one_of(*values: Any) -> Accepted:
  """These values."""
  *most, last = map(repr, values)
  return Accepted(f'{", ".join(most)} or {last}', lambda v: v in values)


POSITIVE = Accepted('positive', lambda v: 0 < v < math.inf)


def numbers(count: int, text: str, test: Callable[[Any], bool]) -> Accepted:
  """Tuples of numbers.

  Args:
    count: How many.
    text: Completes 'it must be ...'.
    test: Whether such a tuple is accepted.
  """
  return Accepted(
    text, lambda v: len(v) == count and all(map(is_number, v)) and test(v)
  )


def _are_integers(value: Any) -> bool:
  return all(isinstance(item, int) and is_number(item) for item in value)


INTEGERS = Accepted('a tuple of integers, or ()', _are_integers)
# One tuple of integers per stage of a network.
INTEGERS_OF_STAGES = Accepted(
  'a tuple of tuples, or ()', lambda v: all(map(_are_integers, v))
)


def is_window(value: Any) -> bool:
  """Whether a value is frames, rows and columns, each 1 or more."""
  return (
    isinstance(value, (tuple, list))
    and len(value) == 3
    and _are_integers(value)
    and min(value) >= 1
  )
