"""Every configuration field: its meaning, unit and default.

Library code reads fields from the config it is given and has no defaults of
its own. Config files start from `base()`, which is locked: a misspelt field
raises an AttributeError in a config file and on the command line alike.

Conventions: `*_px` are pixels, `*_s` seconds, `*_epochs` passes over the
training set, `num_*` counts. An empty tuple, an empty string or None means
"not set" and the comment says what happens then.
"""

import ml_collections
from ml_collections import config_dict

# Of `data`: how a machine feeds itself. No result depends on them.
MACHINE_DATA_FIELDS = (
  'dir',
  'num_workers',
  'worker_processes',
  'prefetch_batches',
)

# Options of `model` that every network has ...
COMMON_OPTIONS = frozenset(
  ('name', 'num_classes', 'dropout', 'dtype', 'depth', 'blocks', 'width')
)
_NONLOCAL_OPTIONS = (
  'num_temporal',
  *(f'nonlocal_{name}' for name in ('blocks', 'mode', 'pool', 'groups')),
)
# ... and those that one of them has. They are the fields of its class in
# mgjax/models, which a test compares; here they are known without JAX.
MODEL_OPTIONS = {
  'slowfast': (
    *('alpha', 'beta_inv', 'fusion_kernel', 'fusion_ratio'),
    *_NONLOCAL_OPTIONS,
    *(f'nonlocal_{name}_fast' for name in ('blocks', 'pool', 'groups')),
  ),
  'slow': _NONLOCAL_OPTIONS,
  'c2d': _NONLOCAL_OPTIONS,
  'i3d': _NONLOCAL_OPTIONS,
  'tsn': ('temporal_strides', 'temporal_pool'),
  'tsm': ('temporal_strides', 'temporal_pool', 'shift_div', 'shift_place'),
  'tam': (
    *('temporal_strides', 'temporal_pool'),
    *('tam_frames', 'tam_blend', 'tam_depthwise'),
  ),
  'blresnet': ('bl_alpha', 'bl_beta'),
  'blvnet_tam': ('bl_alpha', 'bl_beta', 'tam_frames'),
  'i3d_resnet': ('temporal_strides',),
  's3d_resnet': ('temporal_strides', 'depthwise_temporal'),
}


def base() -> ml_collections.ConfigDict:
  """Returns a new locked config with every field at its default."""
  config = ml_collections.ConfigDict()
  # Seed of the initial weights, the order of clips, augmentation and dropout.
  config.seed = 0
  # Folder whose weights a new run starts from: that of another run (its newest
  # checkpoint), of one checkpoint, or of mgjax.import_weights; '': none.
  config.init_from = ''
  # 'load': its classifier is taken as well; 'new': a new one is trained.
  config.init_head = 'load'

  config.model = model = ml_collections.ConfigDict()
  model.name = 'slowfast'  # A name that mgjax.models.build knows.
  model.num_classes = 400
  model.dropout = 0.5  # Before the classifier; a rate in [0, 1).
  model.dtype = 'float32'  # Compute type: 'float32' or 'bfloat16'.
  # ResNet depth, 50 or 101 (tsn, tsm, tam, i3d_resnet, s3d_resnet: 18, 34 and
  # 152 too; those below 50 have basic blocks). `blocks` (per stage, for example
  # (1, 1, 1, 1)) replaces its number of blocks where it is not empty.
  model.depth = 50
  model.blocks = ()
  model.width = 64  # Channels after the stem; every stage follows from it.
  model.alpha = 4  # SlowFast: fast frames per slow frame.
  model.beta_inv = 8  # SlowFast: slow channels per fast channel.
  model.fusion_kernel = 7  # SlowFast: temporal size of the lateral kernels.
  model.fusion_ratio = 2  # SlowFast: lateral channels per fast channel.
  # tsn, tsm, tam, i3d_resnet, s3d_resnet: temporal stride, 1 or 2, at the
  # entrance of every stage, such as (1, 2, 2, 2); (): no stride.
  model.temporal_strides = ()
  # tsn, tsm, tam: what such a stride is, a 'max' or 'avg' pool of three frames.
  # (In i3d_resnet and s3d_resnet it is the stride of a convolution.)
  model.temporal_pool = 'max'
  # tam, blvnet_tam: frames that are aggregated, odd; 0: no aggregation.
  model.tam_frames = 3
  # tam: 'sum' of the weighted frames, or their 'max'.
  model.tam_blend = 'sum'
  # tam: every channel is weighed by itself; False: all channels are mixed.
  model.tam_depthwise = True
  # s3d_resnet: the temporal convolutions are depthwise.
  model.depthwise_temporal = False
  # tsm: 1 / shift_div of the channels come from the next frame, as many from
  # the frame before.
  model.shift_div = 8
  # tsm: 'blockres' shifts the input of residual branches, 'block' that of
  # whole blocks, shortcut included.
  model.shift_place = 'blockres'
  # blresnet, blvnet_tam: channels of the big branch per channel of the little.
  model.bl_alpha = 2
  # blresnet, blvnet_tam: blocks of a stage per block of its little branch.
  model.bl_beta = 4
  # Per stage, how many blocks from the first have temporal kernels (those of
  # the architecture; the others have 1); (): all of them.
  model.num_temporal = ()
  # Per stage, indices of the blocks that a non-local block follows, such as
  # ((), (1, 3), (1, 3, 5), ()); (): none. SlowFast: of the slow pathway ...
  model.nonlocal_blocks = ()
  model.nonlocal_blocks_fast = ()  # ... and of the fast one.
  # Weights of the positions: 'softmax', or 'dot_product' over their number.
  model.nonlocal_mode = 'softmax'
  # Frames, rows and columns of the max-pool in front of phi and g; or one such
  # window per stage. SlowFast: of the slow pathway ...
  model.nonlocal_pool = (1, 2, 2)
  model.nonlocal_pool_fast = ()  # ... and of the fast one; (): the same.
  # Per stage, groups of consecutive frames within which non-local blocks act;
  # (): 1, all frames together. SlowFast: of the slow pathway ...
  model.nonlocal_groups = ()
  model.nonlocal_groups_fast = ()  # ... and of the fast one.

  config.data = data = ml_collections.ConfigDict()
  data.name = 'moving_digits/motion'  # TFDS name/config below `dir`.
  # Folder of the prepared data sets; '': $TFDS_DATA_DIR, else ./data.
  data.dir = ''
  # Read smaller copies of the data set (NAME/short128 ... beside NAME) where
  # they have enough pixels for a clip.
  data.copies = True
  # Training videos in an epoch; None: read from the data set's description.
  data.num_train = config_dict.placeholder(int)
  data.num_frames = 32  # T of the full grid.
  data.stride_frames = 2  # Frames from one sampled frame to the next.
  # Frame rate at which stride_frames counts (videos of another rate are
  # sampled at the same spacing in seconds); 0: count the video's own frames.
  data.target_fps = 30.0
  # Crop of the full grid: a square, or crop_px high and crop_width_px wide.
  data.crop_px = 224
  data.crop_width_px = config_dict.placeholder(int)
  # The short side of a video is resized to a random length in this range.
  data.jitter_px = (256, 320)
  data.jitter_inverse = False  # Draw 1 / length uniformly, not the length.
  data.sampling = 'dense'  # 'dense': a strided span. 'segments': TSN's.
  data.flip = True  # Mirror half of the clips, left to right.
  data.mean = (0.45, 0.45, 0.45)  # Subtracted from RGB in [0, 1] ...
  data.std = (0.225, 0.225, 0.225)  # ... which is then divided by this.
  data.batch_size = 64  # Clips per step of the full grid, over all devices.
  # Threads that decode batches ahead of the device; 0: one per core.
  data.num_workers = 0
  # Processes that have those threads; 0: this one. For many cores; a process
  # that dies is replaced.
  data.worker_processes = 0
  data.prefetch_batches = 6  # Batches ready or under way; 3 = a short cycle.
  data.max_bad_fraction = 0.01  # Undecodable training videos tolerated.

  # Changes of training clips beyond the crop and the flip, made on the device,
  # the same for all frames of a clip; everything is off at 0.
  config.augment = augment = ml_collections.ConfigDict()
  # RandAugment: operations per clip, each drawn from the 13 of
  # mgjax/step/augment.py, and their strength, from 0 to 10.
  augment.randaugment_ops = 0
  augment.randaugment_magnitude = 9.0
  # Colour jitter: brightness, contrast and saturation are multiplied by a
  # factor in [1 - v, 1 + v]; hue is turned by [-v, v] full turns, v <= 0.5.
  augment.brightness = 0.0
  augment.contrast = 0.0
  augment.saturation = 0.0
  augment.hue = 0.0
  # Random erasing: share of the clips in which a rectangle becomes data.mean,
  # its share of the picture, and its height / width.
  augment.erase_probability = 0.0
  augment.erase_area = (0.02, 1 / 3)
  augment.erase_aspect = (0.3, 1 / 0.3)
  # Every clip is mixed with its neighbour in the batch, labels too; the share
  # of it follows Beta(alpha, alpha). Where both are on, each mixes half.
  augment.mixup_alpha = 0.0  # Mixup: everywhere.
  augment.cutmix_alpha = 0.0  # CutMix: a rectangle is the neighbour's.

  config.optim = optim = ml_collections.ConfigDict()
  optim.name = 'sgd'  # 'sgd', 'adamw', 'lars' or 'lamb'.
  # 'softmax': cross-entropy, one label per video. 'sigmoid': binary
  # cross-entropy of every class, any number of labels per video.
  optim.loss = 'softmax'
  optim.base_lr = 0.1  # Learning rate of the full grid's batch.
  # Clips per step that the learning rates of this section and of grid.ladder
  # are meant for: all of them, warmup_lr and end_lr included, are multiplied
  # by data.batch_size / base_batch. 0: they are those of data.batch_size.
  optim.base_batch = 0
  optim.momentum = 0.9  # sgd, lars.
  optim.nesterov = True  # sgd, lars.
  optim.b1 = 0.9  # adamw, lamb: decay of the mean of gradients ...
  optim.b2 = 0.999  # ... and of their squares.
  optim.eps = 1e-8  # adamw, lamb: added to the root of the latter.
  # lars: norm of a layer's update, per unit of learning rate and weight norm.
  optim.trust_coefficient = 0.001
  optim.weight_decay = 1e-4  # On everything but batch-norm scale and bias.
  # Norm, over all parameters, down to which gradients are scaled; 0: any norm.
  optim.clip_norm = 0.0
  # Share of the target that is spread evenly over all classes, in [0, 1).
  optim.label_smoothing = 0.0
  # Share of the average of the weights that a step keeps (less during the
  # first steps), in [0, 1); 0: no average. With one, evaluation uses it.
  optim.ema_decay = 0.0
  # 'steps', 'cosine' or 'constant'; or a call of an optax schedule whose
  # count is baseline epochs, such as
  # 'optax.linear_schedule(init_value=0.1, end_value=0.0, transition_steps=20)'.
  optim.schedule = 'steps'
  optim.lr_steps = (94, 154, 196)  # Baseline epochs at which 'steps' decays.
  optim.gamma = 0.1  # Factor of each decay.
  optim.end_lr = 0.0  # 'cosine': learning rate at the end.
  optim.total_epochs = 239  # Epochs of the baseline.
  # Linear warm-up, in epochs of the run itself (multigrid does not stretch
  # it), from warmup_lr to the schedule's value at its end.
  optim.warmup_epochs = 34.0
  optim.warmup_lr = 0.01

  config.grid = grid = ml_collections.ConfigDict()
  # 'none', 'short', 'long', 'both', 'ladder' or 'progressive'.
  grid.mode = 'none'
  # Long cycle, coarse to fine: (frames factor, side factor) of the full grid.
  grid.long_factors = ((0.25, 0.5**0.5), (0.5, 0.5**0.5), (0.5, 1), (1, 1))
  # Short cycle: side factors of the full grid; the phase's own grid is last.
  grid.short_factors = (0.5, 0.5**0.5)
  # Epochs of the run per baseline epoch (modes short, long, both,
  # progressive; 'none' and 'ladder' train for just the epochs they name).
  grid.epoch_factor = 1.5
  # Long cycles before the fine-tuning phase where the learning rate has no
  # steps to align with (any schedule but 'steps').
  grid.num_long_cycles = 3
  # Whether the last interval is the fine-tuning phase, on the full grid; else
  # it is one more long cycle.
  grid.fine_tune = True
  # Whether the learning rate follows the batch of the phase (long, both,
  # progressive), as the papers have it; else it is the baseline's.
  grid.scale_lr = True
  # 'ladder': (frames factor, epochs, learning rate, schedule) of each rung;
  # the schedule is written as in optim.schedule and restarts at every rung.
  grid.ladder = ((0.5, 50, 0.01, 'cosine'), (1, 25, 0.01, 'cosine'))
  # 'progressive': (share of the epochs, frames factor, side factor).
  grid.progressive = ((0.75, 1, 0.5), (0.25, 1, 1))

  config.norm = norm = ml_collections.ConfigDict()
  # Clips behind one batch-norm statistic at the phase's base grid; 0: the
  # whole batch.
  norm.group_clips = 8
  # 'phase': the number of groups is the phase's (groups grow inside a short
  # cycle, as in the paper); 'step': every group has group_clips clips.
  norm.group_by = 'phase'
  norm.momentum = 0.9  # Share of the old running statistics a step keeps.
  norm.eps = 1e-5
  # Training batches at the phase's base grid from which the statistics are
  # estimated afresh before an evaluation; 0: keep the running ones.
  norm.precise_batches = 200
  # Batch norms that keep the statistics, scales and biases of init_from: 'all',
  # 'but_first' (all but the first of each pathway: TSN's "partial batch norm"),
  # or '', none. For fine-tuning on batches too small for statistics.
  norm.frozen = ''

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.split = 'validation'
  evaluation.every = 10.0  # Epochs between evaluations; 0: at the end only.
  evaluation.num_views = 10  # Temporal views per video.
  # Spatial crops per view. 1: the centre; 3: along the long side; 5: corners
  # and centre; 10: those and their mirror images.
  evaluation.num_crops = 3
  # How the scores of a video's views become one: 'sum' or 'max', class by
  # class.
  evaluation.ensemble = 'sum'
  evaluation.crop_px = 256  # Crop; with 3 crops also the resized short side.
  evaluation.crop_width_px = config_dict.placeholder(int)
  # Short side that videos are resized to before the crop (1, 5, 10 crops).
  evaluation.short_side_px = 256
  evaluation.batch_size = 64  # Clips per evaluation step.
  # 'global': average features over all positions, classify, softmax.
  # 'fully_conv': average features over windows of the training clip's size
  # (data.num_frames, data.crop_px), classify each, average the softmax scores
  # of all windows: what PySlowFast does without a short cycle.
  evaluation.head = 'global'
  # Seconds between saves of what has been scored: a killed evaluation goes on
  # from there.
  evaluation.save_every_s = 60.0

  config.train = train = ml_collections.ConfigDict()
  # Equal parts of every batch that are computed one after the other, to save
  # memory; whole batch-norm groups each, so the step stays the same. 1: one.
  train.micro_batches = 1
  # 'block': the backward pass computes the inside of each residual block
  # again instead of keeping it: less memory, about a third more time. '': off.
  train.remat = ''
  # Memory of a device in GiB, with which the plan's estimate is compared: a run
  # that may not fit gets a warning. 0: what the device says it has (CPUs do
  # not: nothing is compared there).
  train.device_memory_gib = 0.0
  train.log_every_steps = 10  # Steps between lines of metrics.jsonl.
  train.checkpoint_every_s = 600.0  # Seconds between checkpoints ...
  train.checkpoint_every_steps = 0  # ... or steps, where this is not 0.
  train.keep_checkpoints = 3  # The newest that are kept ...
  train.keep_best = 1  # ... and those with the best top-1 in evaluations.
  # Peak of one device in 1e12 floating-point operations per second at
  # model.dtype, from its data sheet: metrics.jsonl then has the share of it
  # that training uses ('mfu'); 0: unknown.
  train.peak_tflops = 0.0
  # Project in Weights & Biases that gets all metrics and pictures too; '':
  # none. Needs the package wandb.
  train.wandb_project = ''
  return config.lock()
