"""Reads what a compiler has made of a program: its optimized HLO as text.

One program runs on every device; all that is counted here is of one of them.
What is in a loop counts as often as it runs, where the compiler says how often
that is, and else once.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# What moves numbers between devices.
COLLECTIVES = (
  *('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'),
  *('collective-permute', 'collective-broadcast', 'ragged-all-to-all'),
)
# Results of operations that neither read nor write.
_NO_TRAFFIC = (
  *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
  *('while', 'conditional', 'call', 'after-all', 'partition-id'),
)
# Copies below this cost nothing that is worth a line.
LARGE_BYTES = 1_000_000

_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = ')
_OPERATION = re.compile(r'\s*([\w\-]+)\(')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,<=]*)\](\{[^}]*\})?')
_CALLED = re.compile(
  r'\b(calls|to_apply|body|condition|branch_computations|true_computation|'
  r'false_computation|called_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Traffic(NamedTuple):
  """How many operations of a kind run, and the bytes of their results."""

  count: int = 0
  bytes: int = 0

  def plus(self, times: int, size: int) -> 'Traffic':
    return Traffic(self.count + times, self.bytes + times * size)

  def joined(self, other: 'Traffic') -> 'Traffic':
    return Traffic(self.count + other.count, self.bytes + other.bytes)


@dataclasses.dataclass(frozen=True)
class Found:
  """What a program consists of.

  Attributes:
    collectives: By kind. One that starts and ends asynchronously is one.
    convolutions: Number by layout and type of the result, such as
      'b01f_01io->b01f bf16', those of cuDNN among them. The digits are the axes
      that are convolved: on TPUs 'bf_io->bf' is a matrix product.
    copies: Copies and transposes of at least LARGE_BYTES, within fusions too.
      Those from one kind of memory to another are none.
    accessed_bytes: Of all that is read and written, the fusions each as one: an
      upper bound, since a part of an operand counts as all of it.
  """

  collectives: dict[str, Traffic]
  convolutions: dict[str, int]
  copies: Traffic
  accessed_bytes: int

  def plus(self, other: 'Found') -> 'Found':
    """What two programs consist of."""
    collectives = dict(self.collectives)
    for kind, traffic in other.collectives.items():
      collectives[kind] = collectives.get(kind, Traffic()).joined(traffic)
    return Found(
      collectives,
      dict(
        collections.Counter(self.convolutions)
        + collections.Counter(other.convolutions)
      ),
      self.copies.joined(other.copies),
      self.accessed_bytes + other.accessed_bytes,
    )


class _Instruction(NamedTuple):
  name: str
  type: str  # Of the result.
  operation: str
  rest: str  # Behind the bracket that opens the operands.


def read(text: str) -> Found:
  """Counts what is in a program.

  Args:
    text: Of `jax.stages.Compiled.as_text`; or of several programs that run one
      after the other, which are counted together.
  """
  # A computation of one may have the name of another one's.
  first, *others = [
    _read_one(part) for part in re.split('(?m)^(?=HloModule )', text) if part
  ] or [_read_one('')]
  return functools.reduce(Found.plus, others, first)


def _read_one(text: str) -> Found:
  computations = dict(_computations(text))
  times, fused = _times(computations)
  collectives: dict[str, Traffic] = {}
  seen: set[tuple] = set()
  convolutions: collections.Counter = collections.Counter()
  copies, accessed = Traffic(), 0
  for name, instructions in computations.items():
    if not times[name]:
      continue
    for item in instructions:
      kind = item.operation.removesuffix('-start')
      if kind in COLLECTIVES and (name not in fused or _is_new(item, seen)):
        collectives[kind] = collectives.get(kind, Traffic()).plus(
          times[name], _num_bytes(_result(item))
        )
      if layout := _convolution(item):
        convolutions[layout] += times[name]
      if (size := _copied(item)) >= LARGE_BYTES:
        copies = copies.plus(times[name], size)
    if name not in fused:
      accessed += times[name] * _accessed(instructions)
  return Found(collectives, dict(convolutions), copies, accessed)


def _computations(text: str) -> Iterator[tuple[str, list[_Instruction]]]:
  """Yields names and instructions, callees before their callers."""
  name, found = '', []
  for line in text.splitlines():
    if not name:
      if header := _COMPUTATION.match(line):
        name, found = header[1], []
    elif line.startswith('}'):
      yield name, found
      name = ''
    elif start := _INSTRUCTION.match(line):
      end = _end_of_type(line, start.end())
      if operation := _OPERATION.match(line, end):
        found.append(
          _Instruction(
            start[1],
            line[start.end() : end],
            operation[1],
            line[operation.end() :],
          )
        )


def _end_of_type(line: str, start: int) -> int:
  """Where a type ends: brackets within it may hold blanks."""
  depth = 0
  for i in range(start, len(line)):
    if line[i] in '({[':
      depth += 1
    elif line[i] in ')}]':
      depth -= 1
    elif line[i] == ' ' and not depth:
      return i
  return len(line)


def _times(
  computations: dict[str, list[_Instruction]],
) -> tuple[collections.Counter, set[str]]:
  """How often each computation runs, and which are parts of an operation."""
  times: collections.Counter = collections.Counter()
  times[next(reversed(computations), '')] = 1  # The last one is the entry.
  fused = set()
  for name in reversed(computations):
    for item in computations[name]:
      for role, several, one in _CALLED.findall(item.rest):
        trips = _TRIPS.search(item.rest) if item.operation == 'while' else None
        for called in re.findall(r'[\w.\-]+', several or one):
          times[called] += times[name] * (int(trips[1]) if trips else 1)
          inside = role == 'calls' or (
            role == 'to_apply' and item.operation != 'call'
          )
          if inside and not item.operation.startswith('async'):
            fused.add(called)
  # What a fusion calls is a part of it, too.
  for name in reversed(computations):
    if name in fused:
      for item in computations[name]:
        for _, several, one in _CALLED.findall(item.rest):
          fused.update(re.findall(r'[\w.\-]+', several or one))
  return times, fused


def _is_new(item: _Instruction, seen: set[tuple]) -> bool:
  """Whether a collective in a fusion is not one that another fusion has.

  XLA:TPU splits one over several fusions, each with a copy of it. Others may
  have its channel: what a program asks for in a jax.shard_map has one for all.
  """
  channel = re.search(r'\bchannel_id=(\d+)', item.rest)
  if channel is None:
    return True
  # Not the layout, which says in which kind of memory it is.
  arrays = tuple(
    (dtype, sides) for dtype, sides, _ in _ARRAY.findall(item.type)
  )
  key = item.operation.removesuffix('-start'), channel[1], arrays
  is_new = key not in seen
  seen.add(key)
  return is_new


def _result(item: _Instruction) -> str:
  """The type of what an operation results in, once it has ended."""
  if item.operation in ('all-gather-start', 'collective-permute-start'):
    return _parts(item.type)[1]  # The first is the operand, again.
  return item.type


def _parts(text: str) -> list[str]:
  """The types in a tuple of them."""
  parts, depth, start = [], 0, 1
  for i, letter in enumerate(text):
    if letter in '({[':
      depth += 1
    elif letter in ')}]':
      depth -= 1
    if (letter == ',' and depth == 1) or not depth:
      parts.append(text[start:i])
      start = i + 1
  return parts


def _num_bytes(text: str) -> int:
  """Bytes of all arrays in a type; what a layout pads does not count."""
  return sum(
    math.prod(int(n.lstrip('<=')) for n in sides.split(',') if n)
    * _bits(dtype)
    // 8
    for dtype, sides, _ in _ARRAY.findall(text)
  )


def _bits(dtype: str) -> int:
  return 8 if dtype == 'pred' else int(re.search(r'\d+', dtype)[0])


def _convolution(item: _Instruction) -> str:
  """Layout and type of a convolution; '' if it is none."""
  is_cudnns = 'custom_call_target="__cudnn$conv' in item.rest
  if item.operation != 'convolution' and not is_cudnns:
    return ''
  layout = re.search(r'\bdim_labels=(\S+?->\w+)', item.rest)
  dtype, _, _ = _ARRAY.findall(item.type)[0]
  return f'{layout[1] if layout else "?"} {dtype}'


def _copied(item: _Instruction) -> int:
  """Bytes of a copy or transpose; 0 if it is none."""
  if item.operation in ('copy', 'transpose'):
    return _num_bytes(item.type)
  if item.operation == 'copy-start':
    target, source = _ARRAY.findall(item.type)[:2]
    memory = lambda array: re.search(r'S\(\d+\)', array[2])
    if bool(memory(target)) == bool(memory(source)):
      return _num_bytes(_parts(item.type)[0])
  return 0


def _accessed(instructions: list[_Instruction]) -> int:
  """Bytes that the operations of a computation read and write."""
  sizes = {
    item.name: _num_bytes(_without_workspace(item)) for item in instructions
  }
  total = 0
  for item in instructions:
    if item.operation in _NO_TRAFFIC or item.operation.endswith('-done'):
      continue
    operands = item.rest[: _closing(item.rest)]
    total += sizes[item.name] + sum(
      sizes.get(name, 0) for name in re.findall(r'%([\w.\-]+)', operands)
    )
  return total


def _without_workspace(item: _Instruction) -> str:
  """The type of a result, without the room that cuDNN and cuBLAS work in."""
  if item.operation == 'custom-call' and item.type.startswith('('):
    parts = _parts(item.type)
    return ' '.join(p for p in parts if not re.match(r'\s*[su]8\[\d+\]', p))
  return item.type


def _closing(text: str) -> int:
  """Where the bracket closes that was opened before a text."""
  depth = 1
  for i, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return i
  return len(text)
