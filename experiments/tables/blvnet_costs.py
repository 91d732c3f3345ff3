"""Parameters and multiply-adds of bLVNet-TAM and its 2-D neighbours.

python -m experiments.tables.blvnet_costs

Both papers call multiply-adds FLOPs. One clip, one crop, classifier included.
bLVNet takes frames in pairs: 8x2 are 16 frames. What temporal aggregation
(TAM) costs is the difference to the same network without it. The abstract's
claims, 3 to 4 x fewer FLOPs and about 2 x less memory, stand beside the ratios.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import pathlib
import sys

from experiments import costs, tabulate
from experiments.tables import literature

_TABLE = 'blvnet_costs'
_CLASSES = {'Something-Something V2': 174, 'Moments in Time': 339, 'K400': 400}
_PAIRS = (8, 16, 24, 32)


def sizes() -> tabulate.Table:
  """Multiply-adds by number of frames, and parameters by data set."""
  cases = [
    ('bLVNet-TAM-50', 'blvnet_tam_50', 224, 2),
    ('bLVNet-TAM-101', 'blvnet_tam_101', 224, 2),
    ('bLVNet-TAM-50', 'blvnet_tam_50', 256, 2),
    ('bLVNet-50', 'blvnet_50', 224, 2),
    ('bLVNet-101', 'blvnet_101', 224, 2),
    ('TSN-R50', 'tsn_r50', 224, 1),
    ('TAM-R50', 'tam_r50', 224, 1),
    ('TSN-R101', 'tsn_r101', 224, 1),
  ]
  rows = []
  for name, model, side, per_position in cases:
    frames = [f'{n}x2' if per_position == 2 else f'{n}' for n in _PAIRS]
    found = [
      costs.cost(model, 174, n * per_position, side, side) for n in _PAIRS
    ]
    parameters = [
      costs.cost(model, k, 8 * per_position, 224, 224).parameters
      for k in _CLASSES.values()
    ]
    published = {
      text: literature.cell(_TABLE, f'{name} {text} {side}', 'GMACs')
      for text in frames
    }
    rows.append(
      (
        name,
        f'{side}²',
        *(f'{cost.macs / 1e9:.2f}' for cost in found),
        *(f'{p / 1e6:.2f} M' for p in parameters),
        '; '.join(f'{t}: {c.value}' for t, c in published.items() if c.value),
        *literature.sources(published.values()),
      )
    )
  return tabulate.Table(
    _TABLE,
    (
      'network',
      'crop',
      *(f'GMACs at {n} or {n}x2 frames [computed]' for n in _PAIRS),
      *(f'parameters, {data} [computed]' for data in _CLASSES),
      'GMACs [published]',
      'source',
      'how sure',
    ),
    rows,
  )


def overhead() -> tabulate.Table:
  """What temporal aggregation adds."""
  rows = []
  for name, with_tam, without, frames in (
    ('bLVNet-50 8x2', 'blvnet_tam_50', 'blvnet_50', 16),
    ('bLVNet-101 8x2', 'blvnet_tam_101', 'blvnet_101', 16),
    ('TSN-R50 8', 'tam_r50', 'tsn_r50', 8),
  ):
    tam = costs.cost(with_tam, 174, frames, 224, 224)
    none = costs.cost(without, 174, frames, 224, 224)
    more_macs, more = tam.macs - none.macs, tam.parameters - none.parameters
    rows.append(
      (
        name,
        f'{more:,}',
        f'{more / none.parameters:.2%}',
        f'{more_macs / 1e9:.3f}',
        f'{more_macs / none.macs:.2%}',
      )
    )
  return tabulate.Table(
    'tam_overhead',
    (
      'network',
      'parameters of TAM [computed]',
      'parameters of TAM, of the network [computed]',
      'GMACs of TAM [computed]',
      'MACs of TAM, of the network [computed]',
    ),
    rows,
  )


def ratios() -> tabulate.Table:
  """TSN over bLVNet-TAM at equal frames, beside what the paper says of both."""
  claims = [
    literature.cell('blvnet_ratios', 'bLVNet-TAM against TSN', column)
    for column in ('MACs', 'memory')
  ]
  rows = []
  for depth in (50, 101):
    tsn, with_tam, without = (
      costs.cost(f'{model}{depth}', 174, 16, 224, 224)
      for model in ('tsn_r', 'blvnet_tam_', 'blvnet_')
    )
    rows.append(
      (
        str(depth),
        f'{tsn.macs / with_tam.macs:.2f}',
        f'{tsn.conv_outputs / with_tam.conv_outputs:.2f}',
        f'{tsn.conv_outputs / without.conv_outputs:.2f}',
        *(claim.value for claim in claims),
        *literature.sources(claims),
      )
    )
  return tabulate.Table(
    'blvnet_ratios',
    (
      'depth',
      'MACs [computed]',
      'activations [computed]',
      "activations without TAM's outputs [computed]",
      'MACs [published]',
      'memory [published]',
      'source',
      'how sure',
    ),
    rows,
  )


# Network, classes, frames and side of counts that others published.
_CHECKS = {
  'TSN-R50 8 224 (87 classes)': ('tsn_r50', 87, 8, 224),
  'TAM-R50 8 224 (87 classes)': ('tam_r50', 87, 8, 224),
  'I3D-ResNet-50 8 224 (87 classes)': ('i3d_resnet', 87, 8, 224),
  'S3D-ResNet-50 8 224 (87 classes)': ('s3d_resnet', 87, 8, 224),
  'TSM-R50 8 224 (174 classes)': ('tsm_r50', 174, 8, 224),
  'bLResNet-50 image 224': ('blresnet_50', 1000, 1, 224),
  'bLResNet-101 image 224': ('blresnet_101', 1000, 1, 224),
  'C2D-R50 8x8 256': ('c2d', 400, 8, 256),
  'I3D-R50 8x8 256': ('i3d', 400, 8, 256),
  'Slow-R50 8x8 256': ('slow', 400, 8, 256),
  'SlowFast-R50 4x16 256': ('slowfast_r50_4x16', 400, 32, 256),
  'SlowFast-R50 8x8 256': ('slowfast', 400, 32, 256),
  'SlowFast-R101 8x8 256': ('slowfast_r101_8x8', 400, 32, 256),
  'SlowFast-R101 8x8 50-50 256': ('slowfast_r101_8x8_50_50', 400, 32, 256),
  'SlowFast-R101 16x8 50-50 256': ('slowfast_r101_16x8_50_50', 400, 64, 256),
  'SlowFast-R101 16x8 50-50 256, its paper': (
    *('slowfast_r101_16x8_50_50', 400, 64, 256),
  ),
}


def checks() -> tabulate.Table:
  """The counter against counts that others published, agreeing or not."""
  name = 'counter_checks'
  rows = []
  for row, (model, num_classes, frames, side) in _CHECKS.items():
    cost = costs.cost(model, num_classes, frames, side, side)
    # Linear in the classes, so this is what it would be without any.
    twice = costs.cost(model, 2 * num_classes, frames, side, side)
    cells = [
      literature.cell(name, row, column) for column in ('GMACs', 'parameters')
    ]
    rows.append(
      (
        row,
        f'{cost.macs:,}',
        f'{2 * cost.macs - twice.macs:,}',
        f'{cost.parameters:,}',
        *(cell.value for cell in cells),
        f'{cost.macs / 1e9 / float(cells[0].value) - 1:+.1%}',
        *literature.sources(cells),
      )
    )
  return tabulate.Table(
    name,
    (
      'network, frames, crop',
      'MACs [computed]',
      'MACs without classifier [computed]',
      'parameters [computed]',
      'GMACs [published]',
      'parameters [published]',
      'MACs against published [computed]',
      'source',
      'how sure',
    ),
    rows,
  )


def make() -> list[tabulate.Table]:
  return [sizes(), overhead(), ratios(), checks()]


def picture(path: pathlib.Path) -> None:
  """Multiply-adds and activations of a clip against frames, at 224 pixels."""

  def draw(panels):
    for depth, color in ((50, 'C0'), (101, 'C1')):
      for name, model, style in (
        (f'TSN-R{depth}', f'tsn_r{depth}', 'o--'),
        (f'bLVNet-TAM-{depth}', f'blvnet_tam_{depth}', 'o-'),
      ):
        found = [costs.cost(model, 174, n, 224, 224) for n in _PAIRS]
        for axes, values in zip(
          panels,
          (
            [cost.macs / 1e9 for cost in found],
            [cost.conv_outputs / 1e6 for cost in found],
          ),
          strict=True,
        ):
          axes.plot(_PAIRS, values, style, color=color, label=name)
    for axes, label in zip(
      panels,
      ('GMACs of a clip', 'activations of a clip, millions'),
      strict=True,
    ):
      axes.set(xlabel='frames', ylabel=label, xticks=_PAIRS, ylim=(0, None))
    panels[0].legend(frameon=False)

  tabulate.save_picture(draw, path, panels=2, beside=True)


if __name__ == '__main__':
  sys.exit(tabulate.main(make, picture))
