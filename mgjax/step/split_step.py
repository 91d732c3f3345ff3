"""A training step as two programs, the second of which all grids share.

XLA:CPU compiles a kernel of every fusion, a few for each parameter of the
network. Many of those of a step only update parameters: they are the same for
every grid. As a program of their own they are compiled once
(docs/speed.md has how much that saves). On accelerators a step is one program,
whose memory is planned as a whole.
"""

import collections
from collections.abc import Mapping
from typing import Any

import jax

from mgjax.step import compilation, train_step
from mgjax.step.train_step import Parts


class SplitStep:
  """What jax.jit returns, of a training step: it has `lower`."""

  def __init__(self, parts: Parts, sharding: jax.sharding.Sharding):
    """Compiles nothing yet.

    Args:
      parts: Of the step.
      sharding: Of the state, and of all results.
    """
    # The state is an argument as a whole, although the gradients do not read
    # all of it: what the compiler says of memory counts the rest, too.
    self._gradients = jax.jit(
      parts.gradients, out_shardings=sharding, keep_unused=True
    )
    # The old state's memory is the new one's: two would not fit large networks.
    self._update = jax.jit(
      parts.update, donate_argnums=0, out_shardings=sharding
    )
    self._sharding = sharding
    self._shared: Shared | None = None

  def lower(
    self, state: Any, batch: Any, lr: Any, groups: Any, rng: Any, strengths: Any
  ) -> 'Lowered':
    """Lowers a grid's programs, for arguments of `make_train_step`.

    Args:
      state: The same shapes for all grids, as those of lr.
      batch: Of the grid.
      lr: See above.
      groups: As the step takes it.
      rng: As the step takes it.
      strengths: As the step takes it.
    """
    gradients = self._gradients.lower(state, batch, groups, rng, strengths)
    if self._shared is None:
      grads, batch_stats, _ = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=self._sharding
        ),
        gradients.out_info,
      )
      self._shared = Shared(
        self._update.lower(state.replace(batch_stats=batch_stats), grads, lr)
      )
    return Lowered(gradients, self._shared)


class Shared:
  """A lowered program that is compiled once."""

  def __init__(self, lowered: jax.stages.Lowered):
    self.lowered = lowered
    self._compiled: dict[tuple, jax.stages.Compiled] = {}

  def compile(self, options: dict[str, Any] | None) -> jax.stages.Compiled:
    """Compiles it, or returns what was compiled with equal options."""
    key = tuple(sorted((options or {}).items()))
    if key not in self._compiled:
      self._compiled[key] = self.lowered.compile(compiler_options=options)
    return self._compiled[key]


class Lowered:
  """What a lowered program has, of two."""

  def __init__(self, gradients: jax.stages.Lowered, update: Shared):
    self._gradients, self._update = gradients, update

  def as_text(self) -> str:
    return f'{self._gradients.as_text()}\n{self._update.lowered.as_text()}'

  def compile(
    self, compiler_options: Mapping[str, Any] | None = None
  ) -> 'Compiled':
    options = dict(compiler_options) if compiler_options else None
    return Compiled(
      self._gradients.compile(compiler_options=options),
      self._update.compile(options),
    )


class Compiled:
  """What a compiled program has, of two; called as the whole step is."""

  def __init__(
    self, gradients: jax.stages.Compiled, update: jax.stages.Compiled
  ):
    self._gradients, self._update = gradients, update
    self._step = train_step.whole(Parts(gradients, update))

  def __call__(self, *arguments: Any) -> tuple:
    return self._step(*arguments)

  def as_text(self) -> str:
    return f'{self._gradients.as_text()}\n{self._update.as_text()}'

  def memory_analysis(self) -> Any:
    """Of the program that takes more: they run one after the other."""
    greater = max((self._gradients, self._update), key=compilation.needed_bytes)
    return greater.memory_analysis()

  def cost_analysis(self) -> dict[str, float]:
    """Of both together."""
    total: collections.Counter = collections.Counter()
    for part in (self._gradients, self._update):
      total.update(part.cost_analysis() or {})
    return dict(total)
