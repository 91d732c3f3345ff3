"""What the recipes of models on sampled frames share across data sets.

Frames come from equal segments of the whole video (TSN's sampling). All but
bLVNet-TAM take 8 and follow TSM's recipe, so that they compare; bLVNet-TAM
takes 16 pairs, with grid=ladder 8 pairs first.

Source: mit-han-lab/temporal-shift-module, README and main.py. Fan et al. 2019
  (arXiv:1912.00869), section 4.1; IBM/bLVNet-TAM feadcd3, opts.py, train.py.
Differs: The references start from ImageNet weights. They crop one of four
  sizes, also of other aspect ratios; here sizes of the same range.
"""

import ml_collections

from mgjax.errors import ConfigError

# Family -> (frames, what stands before the depth, depths).
FAMILIES = {
  **dict.fromkeys(
    ('tsn', 'tsm', 'tam', 'i3d_resnet', 's3d_resnet'),
    (8, '_r', (18, 34, 50, 101, 152)),
  ),
  'blresnet': (8, '_', (50, 101, 152)),
  'blvnet_tam': (32, '_', (50, 101, 152)),
}
# Argument -> (name, depth, frames); 'tsm' is 'tsm_r50'.
MODELS = {
  argument: (name, depth, frames)
  for name, (frames, infix, depths) in FAMILIES.items()
  for depth in depths
  for argument in (
    f'{name}{infix}{depth}',
    *((name,) if depth == 50 else ()),
  )
}
ACCEPTED = ', '.join(
  f'{name}[{"|".join(f"{infix}{depth}" for depth in depths)}]'
  for name, (_, infix, depths) in FAMILIES.items()
)


def use(config: ml_collections.ConfigDict, model: str) -> None:
  """Sets what does not depend on the data set.

  Raises:
    ConfigError: If there is no such model.
  """
  if model not in MODELS:
    raise ConfigError(
      f'config argument model={model!r} is unknown here; accepted are '
      f'{ACCEPTED}.'
    )
  config.model.name, config.model.depth, config.data.num_frames = MODELS[model]
  config.model.dropout = 0.5

  config.data.sampling = 'segments'
  config.data.mean = (0.485, 0.456, 0.406)
  config.data.std = (0.229, 0.224, 0.225)
  # A crop of 1 to 0.66 of the short side, resized to the full crop.
  config.data.jitter_px = (224, 340)
  config.data.jitter_inverse = True
  config.data.batch_size = 64
  config.data.crop_px = 224

  config.eval.num_views = 1
  config.eval.num_crops = 1
  config.eval.crop_px = 224

  config.optim.base_lr = 0.01
  config.optim.weight_decay = 5e-4
  config.optim.warmup_epochs = 0.0
  if config.model.name == 'blvnet_tam':
    config.optim.schedule = 'cosine'
    config.optim.total_epochs = 75  # As many as the ladder's.
    config.optim.lr_steps = (10, 20)  # Of the ladder's second rung.
    config.grid.ladder = ladder(config.data.num_frames // 2)
  else:
    config.optim.nesterov = False
    config.optim.lr_steps = (20, 40)
    config.optim.total_epochs = 50


def ladder(
  pairs: int, lr: float = 0.01
) -> tuple[tuple[float, int, float, str], ...]:
  """Rungs of bLVNet-TAM's training: 8 pairs of frames, then 8 more a rung.

  The paper gives the first two; of further ones it says 'and so on'.

  Args:
    pairs: Of the last rung, a multiple of 8 above 8.
    lr: Learning rate of all rungs but the first.

  Returns:
    config.grid.ladder, for 2 * pairs frames.
  """
  first = (8 / pairs, 50, 0.01, 'cosine')
  return first, *((n / pairs, 25, lr, 'steps') for n in range(16, pairs + 1, 8))


def fine_tune(config: ml_collections.ConfigDict, model: str) -> None:
  """Sets TSM's recipe for small data sets, from Kinetics weights.

  Raises:
    ConfigError: If there is no such model, or it has another recipe.
  """
  use(config, model)
  if config.model.name == 'blvnet_tam':
    raise ConfigError(
      f'config argument model={model!r} has no recipe for small data sets; use '
      'another one, such as tsm_r50.'
    )
  config.init_head = 'new'  # Where init_from is given.
  config.model.dropout = 0.8
  config.optim.base_lr = 0.001
  config.optim.lr_steps = (10, 20)
  config.optim.total_epochs = 25
  config.eval.every = 5.0
