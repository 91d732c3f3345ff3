"""The grids of the long and the short cycle (the multigrid paper's figure 2).

python -m experiments.tables.multigrid_grids
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import sys

from experiments import costs, tabulate
from experiments.runs import recipes, settings
from experiments.tables import literature
from mgjax.planning import plan_text
from mgjax.setup.grids import full_grid

_TABLE = 'multigrid_grids'
_MODES = ('none', 'short', 'long', 'both')


def grids() -> tabulate.Table:
  """One row for each grid of the default schedule, coarse to fine."""
  rows = []
  for recipe in recipes.SLOWFAST:
    config = recipe.config('both')
    full = full_grid(config)
    cost = lambda grid, config=config, recipe=recipe: (
      grid.batch
      * costs.cost(recipe.model, config.model.num_classes, *grid[:3]).macs
    )
    bases = []
    for phase in settings.schedule(config).phases:
      if phase.base in bases:
        continue
      bases.append(phase.base)
      factors = [grid.batch // full.batch for grid in phase.cycle]
      name = plan_text.shape_text(phase.base._asdict(), full._asdict())
      published = literature.cell(_TABLE, name, 'batches')
      rows.append(
        (
          recipe.data,
          name,
          published.value,
          ', '.join(
            f'{factor}B x {grid.T} x {grid.H}²'
            for factor, grid in zip(factors, phase.cycle, strict=True)
          ),
          f'{sum(factors) / len(factors):.3f}',
          f'{phase.lr_scale:g}',
          # Segments of a video have no stride.
          '-'.join(map(str, dict.fromkeys(phase.stride_frames)))
          if config.data.sampling == 'dense'
          else '',
          ', '.join(
            f'{grid.H}: {low}-{high}'
            for grid, (low, high) in zip(
              phase.cycle, phase.jitter_px, strict=True
            )
          ),
          ', '.join(f'{cost(g) / cost(full):.3f}' for g in phase.cycle),
          *literature.sources([published]),
        )
      )
  return tabulate.Table(
    _TABLE,
    (
      'data set',
      'long cycle',
      'batches / B [published]',
      'short cycle [computed]',
      'mean batch / B [computed]',
      'LR x [computed]',
      'stride, frames [computed]',
      'crop: short side, pixels [computed]',
      'MACs of a step / full step [computed]',
      'source',
      'how sure',
    ),
    rows,
  )


def programs() -> tabulate.Table:
  """How many programs each schedule compiles."""
  rows = []
  for recipe in recipes.ALL:
    counts = [
      len(settings.schedule(recipe.config(mode)).grids) for mode in _MODES
    ]
    rows.append((recipe.data, recipe.network, *map(str, counts)))
  return tabulate.Table(
    'distinct_programs',
    ('data set', 'network', *(f'{mode} [computed]' for mode in _MODES)),
    rows,
  )


def clip_costs() -> tabulate.Table:
  """Multiply-adds of one clip of SlowFast-R50."""
  sides = (112, 158, 224, 256)
  rows = []
  cases = [(f'SlowFast-R50 8x8, T = {T}', 'slowfast', T) for T in (8, 16, 32)]
  cases += [
    ('SlowFast-R50 16x8, T = 64', 'slowfast', 64),
    ('SlowFast-R50 4x16, T = 32', 'slowfast_r50_4x16', 32),
  ]
  for name, model, T in cases:
    found = [costs.cost(model, 400, T, side, side) for side in sides]
    zoo = name.split(',')[0] + ' 256'
    cells = [
      literature.cell('clip_costs', zoo, column)
      if (model, T) in (('slowfast', 32), ('slowfast_r50_4x16', 32))
      else literature.BLANK
      for column in ('GMACs', 'parameters')
    ]
    rows.append(
      (
        name,
        *(f'{c.macs / 1e9:.2f}' for c in found),
        f'{found[0].parameters / 1e6:.2f} M',
        *(cell.value for cell in cells),
        *literature.sources(cells),
      )
    )
  return tabulate.Table(
    'clip_costs',
    (
      'network',
      *(f'GMACs at {side}² [computed]' for side in sides),
      'parameters [computed]',
      'GMACs at 256² [published]',
      'parameters [published]',
      'source',
      'how sure',
    ),
    rows,
  )


def make() -> list[tabulate.Table]:
  return [grids(), programs(), clip_costs()]


def picture(path: pathlib.Path) -> None:
  """Mini-batches over the first steps of each shape, one panel per mode."""

  ticks = (1, 2, 4, 8, 16)

  def draw(panels):
    for axes, mode in zip(panels, _MODES, strict=True):
      config = recipes.KINETICS.config(mode)
      full = full_grid(config)
      seen, x = [], 0
      for phase in settings.schedule(config).phases:
        if phase.base in seen:
          continue
        seen.append(phase.base)
        if mode in ('none', 'long'):  # One shape, until the next.
          T, H, _, batch = phase.base
          axes.annotate(
            f'{T} x {H}²', (x, 1.1 * batch / full.batch), va='bottom'
          )
        for i in range(12):
          grid = phase.cycle[i % len(phase.cycle)]
          axes.bar(
            x,
            grid.batch / full.batch,
            color=f'C{grid.T * 4 // full.T}',
            alpha=grid.H / full.H,
            width=0.9,
          )
          x += 1
      axes.set_title(f'grid.mode={mode}', loc='left')
      axes.set_yscale('log', base=2)
      axes.set(ylim=(0.5, 22), yticks=ticks, yticklabels=map(str, ticks))
      axes.set_ylabel('batch / B')
    panels[-1].set_xlabel(
      'twelve steps of each shape, coarse to fine '
      '(colour: frames; paler: smaller crop)'
    )

  tabulate.save_picture(draw, path, panels=len(_MODES))


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
