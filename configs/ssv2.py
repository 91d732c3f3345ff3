r"""Something-Something V2, with and without multigrid training.

python -m mgjax.train --config=configs/ssv2.py:grid=both,seed=0 \
  --config.init_from=runs/k400 --config.init_head=new --workdir=runs/ssv2

Arguments after the colon: grid=none|short|long|both|ladder|progressive, seed=N,
tune=full|probe and model:
  slowfast, slow, i3d, c2d        64 segments; the published results start from
                                  weights trained on Kinetics-400
  tsn_r50, tsm_r50, tam_r50       8 segments, TSM's recipe (and other networks
                                  and depths of mgjax/recipes/segments.py), and
  blvnet_tam_50, blvnet_tam_101   16 x 2 segments, with grid=ladder 8 x 2 first;
                                  the published results start from ImageNet
  videomae_b, vjepa2_l, ...       transformers of mgjax/recipes/transformers.py,
                                  as in configs/kinetics400.py; VideoMAE takes
                                  16 segments, the others 16 x 4 frames

Expected top-1 (top-5), in percent, one view:
  slowfast           63.0 (88.5) grid=none, 63.5 (88.7) grid=both: PySlowFast's
                     MODEL_ZOO.md
  tsm_r50            61.2 with two clips and three crops: TSM's README
  blvnet_tam_50      59.1 at 8 x 2 frames, 61.7 at 16 x 2; blvnet_tam_101: 60.2,
                     61.9: IBM/bLVNet-TAM's README
  videomae_s, _b     66.8 (90.3), 70.8 (92.4), 2 x 3 views: VideoMAE's
                     MODEL_ZOO.md
  vjepa2_l, _g       73.7, 77.3, frozen, probes on 2 clips of 16 frames (g: 64
                     frames, 384 pixels), 3 crops: V-JEPA 2's README.md
  videoprism_b, _l   62.2, 64.6, frozen: VideoPrism's README.md
Expected hours: none are published.

Source: PySlowFast 287ec00, configs/SSv2/SLOWFAST_16x8_R50.yaml; of the others,
  see mgjax/recipes/segments.py and transformers.py.
Differs: PySlowFast tests its multigrid model at 224 pixels, its baseline at
  256, and takes the left of the frame; here both see the centre at 256. The
  code of bLVNet-TAM flips clips, although left and right are part of the
  labels; here none are.
"""

import ml_collections

from mgjax.config import arguments, fields, rules
from mgjax.recipes import published, segments, transformers


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  args = arguments.parse_args(
    arg, grid='both', model='slowfast', seed=0, tune=''
  )
  config = fields.base()
  config.seed = args.seed
  config.grid.mode = args.grid
  config.model.num_classes = 174
  config.data.name = 'something_something_v2'
  config.data.sampling = 'segments'
  config.data.crop_px = 224
  config.data.flip = False  # Left and right are part of the labels.
  config.eval.every = 2.0
  config.eval.num_views = 1
  config.eval.num_crops = 1
  transformers.check_tune(args.tune, args.model)
  if args.model in transformers.NETWORKS:
    _transformer(config, args.model, args.tune)
  elif args.model in segments.MODELS:
    segments.use(config, args.model)
  else:
    _dense(config, args.model)
  return rules.validate(config)


def _transformer(
  config: ml_collections.ConfigDict, model: str, tune: str
) -> None:
  transformers.use(config, model, tune=tune)
  if not model.startswith('videomae'):
    config.data.sampling = 'dense'
    config.data.target_fps = 0.0  # Every fourth frame, whatever the rate.
  config.data.flip = False
  config.eval.num_views = 2


def _dense(config: ml_collections.ConfigDict, model: str) -> None:
  published.set_network(config, model, frames='16x8')
  published.set_fine_tuning(config)
  config.data.jitter_px = (256, 320)

  config.optim.base_lr = 0.03
  config.optim.lr_steps = (14, 18)
  config.optim.total_epochs = 22
  config.optim.warmup_epochs = 0.19
  config.optim.weight_decay = 1e-6
