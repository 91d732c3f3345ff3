"""bLVNet-TAM's ladder: eight pairs of frames, then eight more a rung.

python -m mgjax.plan --config=kinetics400:grid=table,model=blvnet_tam_50 \\
  --config.grid.table=blvnet_tam:lr=0.005

50 epochs at 8 x 2 frames, then 25 at 16 x 2, and 25 for every eight pairs more
of the full grid; the learning rate starts again with each rung. These are the
rows that grid.mode=ladder writes. The batch stays.

Arguments: lr=0.01, the rate at which all rungs but the first start (0.01, too);
schedule=cosine, theirs. The ladder of the recipe has lr=0.005,schedule=steps.

Reported: nothing against a training of all frames from the start.

Source: Fan et al. 2019 (arXiv:1912.00869), section 4.1.
Differs: of rungs after the second the paper says 'and so on'.
"""

from mgjax.config import arguments
from mgjax.errors import ConfigError
from mgjax.grids import Grid


def get_table(full: Grid, epochs: float, arg: str = '') -> list[dict]:
  del epochs
  args = arguments.parse_args(arg, lr=0.01, schedule='cosine')
  if full.T <= 16 or full.T % 16:
    raise ConfigError(
      f'blvnet_tam: the full grid has {full.T} frames; rungs are of 16, 32, 48 '
      '..., so set data.num_frames to one of those above 16.'
    )
  return [
    {
      'epochs': 25 if rung else 50,
      'T': frames,
      'batch': 'constant',
      'stride_frames': 'same_span',
      'lr': {
        'schedule': args.schedule if rung else 'cosine',
        'base_lr': args.lr if rung else 0.01,
      },
      'lr_scale': 'none',
      'baseline_epochs': 25 if rung else 50,
    }
    for rung, frames in enumerate(range(16, full.T + 1, 16))
  ]
