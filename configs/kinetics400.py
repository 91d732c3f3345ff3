r"""Kinetics-400, with and without multigrid training.

python -m mgjax.train --config=configs/kinetics400.py:grid=both,seed=0 \
  --workdir=runs/k400

Arguments after the colon: grid=none|short|long|both|ladder|progressive, seed=N,
recipe=steps|cosine, tune=full|probe and model:
  slowfast, slow, i3d, c2d        dense clips; longer names such as
                                  slowfast_r101_16x8_50_50 or i3d_nln_r50_8x8 as
                                  in mgjax/recipes/published.py
  tsn_r50, tsm_r50, tam_r50       8 segments, TSM's recipe; so have i3d_resnet,
                                  s3d_resnet, blresnet and other depths
  blvnet_tam_50, blvnet_tam_101   16 x 2 segments; with grid=ladder 8 x 2 first
  videomae_b, vjepa2_l, ...       transformers of mgjax/recipes/transformers.py,
                                  from the weights of --config.init_from:
                                  tune=full is VideoMAE's fine-tuning, its
                                  default; tune=probe V-JEPA 2's attentive probe
                                  on a frozen backbone, the others' default
The stepwise recipe of dense clips (239 epochs) is multigrid's; the published
baselines of slow, i3d and c2d have the other one (cosine, 196 epochs).
Kinetics-600 and -700 have no published settings of these models: they take
these, with --config.data.name=kinetics600 --config.model.num_classes=600.
grid=none is the baseline; nothing else changes with it. The published results
of the models on segments start from ImageNet weights.

Expected top-1 (top-5), in percent:
  slowfast           76.8 (92.7) grid=none, 76.6 (92.7) grid=both, 10 x 3 views:
                     PySlowFast's MODEL_ZOO.md
  c2d, i3d, slow,    71.46 (89.68), 73.27 (90.70), 74.58 (91.63), 76.94 (92.69)
  slowfast             recipe=cosine,grid=none, 10 x 3 views: PyTorchVideo's
                       model_zoo.md, trained with PySlowFast
  tsn_r50, tsm_r50   68.8, 71.2, one view: TSM's README
  blvnet_tam_50      71.0 at 8 x 2 frames: IBM/bLVNet-TAM, issue 5, where users
                     report 55 to 57
  videomae_s, _b, _l,  79.0 (93.8), 81.5 (95.1), 85.2 (96.8), 86.6 (97.1), 5 x 3
    _h                   views: VideoMAE's MODEL_ZOO.md
  videoprism_b, _l     82.9, 85.0, frozen: VideoPrism's README.md
  vjepa2_l             none is published for one clip of 16 frames
Expected hours: slowfast, 5 to 7 days for 200 epochs on eight GPUs (its authors,
  facebookresearch/SlowFast issue 91); with multigrid about 5 hours on 128 GPUs
  (issue 292, quoting the paper). PaddleVideo took 6.7 days with multigrid, 10.7
  without (and fewer epochs), on eight V100. Of the others none are published.

Source: PySlowFast 287ec00, configs/Kinetics/SLOWFAST_8x8_R50_stepwise.yaml;
  recipe=cosine and the frames of the other models from C2D_8x8_R50.yaml and its
  neighbours. Models on segments: see mgjax/recipes/segments.py; transformers:
  mgjax/recipes/transformers.py.
Differs: PySlowFast tests its multigrid models at 224 pixels and its baselines
  at 256; here both are tested at 256.
"""

import ml_collections

from mgjax.config import arguments, fields, rules
from mgjax.errors import ConfigError
from mgjax.recipes import published, segments, transformers

_RECIPES = ('steps', 'cosine')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  args = arguments.parse_args(
    arg, grid='both', model='slowfast', seed=0, recipe='steps', tune=''
  )
  if args.recipe not in _RECIPES:
    raise ConfigError(f'recipe={args.recipe!r}; accepted are {_RECIPES}')
  config = fields.base()
  config.seed = args.seed
  config.grid.mode = args.grid
  config.model.num_classes = 400
  config.data.name = 'kinetics400'
  config.data.crop_px = 224
  config.eval.every = 10.0
  transformers.check_tune(args.tune, args.model)
  if args.model in transformers.NETWORKS:
    transformers.use(config, args.model, tune=args.tune)
  elif args.model in segments.MODELS:
    if args.recipe != 'steps':
      raise ConfigError(
        f'recipe={args.recipe} is one of dense clips; model={args.model} has '
        'a recipe of its own'
      )
    _sparse(config, args.model)
  else:
    _dense(config, args.model, args.recipe)
  return rules.validate(config)


def _dense(config: ml_collections.ConfigDict, model: str, recipe: str) -> None:
  published.set_network(config, model, frames='8x8')
  config.data.jitter_px = (256, 320)
  config.data.batch_size = 64

  config.optim.base_lr = 0.1
  config.optim.lr_steps = (94, 154, 196)
  config.optim.total_epochs = 239
  if recipe == 'cosine':
    config.optim.schedule = 'cosine'
    config.optim.total_epochs = 196
    # Nothing reads it but the check that steps end before the training.
    config.optim.lr_steps = ()
  config.optim.warmup_epochs = 34.0
  config.optim.warmup_lr = 0.01
  config.optim.weight_decay = 1e-4

  config.eval.num_views = 10
  config.eval.num_crops = 3
  config.eval.crop_px = 256


def _sparse(config: ml_collections.ConfigDict, model: str) -> None:
  segments.use(config, model)
  if config.model.name == 'blvnet_tam':
    config.grid.ladder = segments.ladder(16, lr=0.005)
    config.eval.num_views = 3
    config.eval.num_crops = 3
    config.eval.crop_px = 256
  else:
    config.data.batch_size = 128
    config.optim.base_lr = 0.02
    config.optim.weight_decay = 1e-4
