r"""Fine-tuning on videos of your own, from a run or from imported weights.

python -m mgjax.train --workdir=runs/mine \
  --config=configs/finetune.py:weights=weights/videomae_b,data=ucf101

Arguments after the colon:
  weights  folder of a run, or of mgjax.import_weights; its config.json says the
           network, its clips and its pixels
  data     name of a prepared data set (docs/data.md), or of a source of your
           own, 'package.module:name'; its classes are the new head's
  model    without weights: the transformer that a plan is for
  tune     full: all weights are trained; probe: what pools by attention, and
           the classifier, on a frozen backbone (vjepa2, videoprism)
  grid     none, short, long, both, ladder or progressive; with transformers,
           frames and sides are multiples of the tubelet
  flip     false where left and right are part of the labels
  seed     an integer

Transformers are trained by AdamW with rates that fall from layer to layer,
networks of convolutions by SGD with a hundredth of the rate from scratch. With
a network of convolutions and small batches, --config.norm.frozen=all keeps the
batch norms as they are in the weights.

Expected accuracy and hours: those of your data.

Source: Transformers: see mgjax/recipes/transformers.py. Networks of
  convolutions: the rate of TSM's recipe for UCF101 (mgjax/recipes/segments.py).
"""

import ml_collections

from mgjax.config import arguments, fields, network_options, rules, saved
from mgjax.errors import ConfigError
from mgjax.recipes import transformers

# What weights were trained on, and what others cannot be given to them.
_CLIPS = (
  *('num_frames', 'stride_frames', 'target_fps', 'crop_px', 'crop_width_px'),
  *('jitter_px', 'jitter_inverse', 'sampling', 'mean', 'std'),
)
_VIEWS = ('num_views', 'num_crops', 'crop_px', 'crop_width_px', 'short_side_px')


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  args = arguments.parse_args(
    arg,
    weights='',
    data='ucf101',
    model='',
    tune='',
    grid='none',
    flip=True,
    seed=0,
  )
  transformers.check_tune(args.tune, args.model or 'vjepa2_l')
  if args.weights and args.model:
    raise ConfigError(
      f'model={args.model}: {args.weights} says the network; leave model out'
    )
  config = fields.base()
  config.seed = args.seed
  config.grid.mode = args.grid
  config.data.name = args.data
  if args.weights:
    _take_network(config, args.weights)
  else:
    transformers.use(config, args.model or 'videomae_b')
  config.init_from, config.init_head = args.weights, 'new'
  if network_options.options_of(config.model.name).has_batch_norm:
    _set_convolutional(config, args.tune)
  else:
    _set_transformer(config, args.tune)
  config.data.flip = args.flip
  config.eval.every = 5.0
  return rules.validate(config)


def _take_network(config: ml_collections.ConfigDict, weights: str) -> None:
  """Takes the network of weights, and what their clips and pixels were."""
  old = saved.read_saved(weights)
  config.model.choose(old.model.name)
  network = old.model.to_dict()
  del network['name'], network['num_classes']
  config.model.update(network)
  for name in _CLIPS:
    config.data[name] = old.data[name]
  for name in _VIEWS:
    config.eval[name] = old.eval[name]
  for name in ('frames_multiple', 'side_multiple'):
    config.grid[name] = old.grid[name]
  for name in ('momentum', 'eps', 'group_clips', 'group_by'):
    config.norm[name] = old.norm[name]


def _set_transformer(config: ml_collections.ConfigDict, tune: str) -> None:
  transformers.set_small_fine_tuning(config)
  if tune == 'probe':
    # VideoPrism always pools by attention.
    pool = config.model.get('pool')
    if pool != 'probe' and config.model.name != 'videoprism':
      how = f' pools by {pool!r} and' if pool else ''
      raise ConfigError(
        f'tune=probe: the network{how} has no probe; use tune=full'
      )
    transformers.set_probe(config)
    config.augment.mixup_alpha = config.augment.cutmix_alpha = 0.0
    config.optim.layer_decay = 1.0
    config.optim.label_smoothing = 0.0
    config.optim.base_batch = 256
    config.data.batch_size = 32


def _set_convolutional(config: ml_collections.ConfigDict, tune: str) -> None:
  if tune == 'probe':
    raise ConfigError(
      'tune=probe: the network has no probe; use --config.optim.train=head and '
      '--config.norm.frozen=all to train its classifier only'
    )
  config.data.batch_size = 32
  config.norm.group_clips = min(config.norm.group_clips, 8)
  optim = config.optim
  optim.base_lr, optim.base_batch = 0.001, 64
  optim.schedule, optim.lr_steps = 'cosine', ()
  optim.total_epochs, optim.warmup_epochs, optim.warmup_lr = 25, 1.0, 1e-4
  config.grid.ladder = ((0.5, 25, 0.001, 'cosine'), (1, 12, 5e-4, 'cosine'))
