"""Activations of bLVNet and TSN against frames (bLVNet-TAM's figure 3b).

python -m experiments.tables.activation_memory

What convolutions write in a forward pass of one clip at 224 pixels: the part
of a training step's memory that grows with the clip. Measured memory is more
(batch norm, ReLU, gradients), in about the same ratio.
"""

from mgjax import stop_signal

if __name__ == '__main__':
  stop_signal.install()  # Before anything that takes time is imported.

import sys

from experiments import costs, tabulate
from experiments.tables import literature

_FRAMES = (8, 16, 24, 32)
_NETWORKS = {
  'TSN-R50': 'tsn_r50',
  'bLVNet-50': 'blvnet_50',
  'bLVNet-TAM-50': 'blvnet_tam_50',
  'TSN-R101': 'tsn_r101',
  'bLVNet-101': 'blvnet_101',
  'bLVNet-TAM-101': 'blvnet_tam_101',
}


def _elements(model: str, frames: int) -> float:
  """Millions of numbers."""
  return costs.cost(model, 174, frames, 224, 224).conv_outputs / 1e6


def make() -> list[tabulate.Table]:
  rows = []
  for frames in _FRAMES:
    found = {name: _elements(m, frames) for name, m in _NETWORKS.items()}
    published = literature.cell(
      'activation_memory', 'bLVNet-TAM against TSN', 'ratio'
    )
    rows.append(
      (
        str(frames),
        *(f'{value:.1f}' for value in found.values()),
        *(
          f'{found[f"TSN-R{n}"] / found[f"{name}-{n}"]:.2f}'
          for name in ('bLVNet-TAM', 'bLVNet')
          for n in (50, 101)
        ),
        published.value,
        *literature.sources([published]),
      )
    )
  return [
    tabulate.Table(
      'activation_memory',
      (
        'frames',
        *(f'{name}, M [computed]' for name in _NETWORKS),
        *(
          f'TSN / {name}, depth {n} [computed]'
          for name in ('bLVNet-TAM', 'bLVNet')
          for n in (50, 101)
        ),
        'TSN / bLVNet-TAM [published]',
        'source',
        'how sure',
      ),
      rows,
    )
  ]


if __name__ == '__main__':
  sys.exit(tabulate.main(make))
