"""Recipes of video transformers: published numbers, legal plans, weights."""

import importlib

import pytest

from configs import finetune, moving_digits
from mgjax.config import fields, rules
from mgjax.errors import ConfigError
from mgjax.recipes import transformers
from mgjax.setup import augmentation, grids, network, run_settings

RECIPES = [
  (name, f'model={model}{tune}')
  for name in ('kinetics400', 'ssv2')
  for model, tune in (
    ('videomae_s', ''),
    ('videomae_b', ''),
    ('videomae_l', ''),
    ('videomae_h', ''),
    ('vjepa2_l', ''),
    ('vjepa2_l', ',tune=full'),
    ('vjepa2_g', ''),
    ('videoprism_b', ''),
    ('videoprism_l', ''),
    ('videoprism_b', ',tune=full'),
    ('mvitv2_s', ''),
    ('timesformer_b', ''),
    ('vivit_b', ''),
  )
] + [
  ('finetune', 'model=videomae_b'),
  ('finetune', 'model=vjepa2_l,tune=probe'),
]
MODES = ('none', 'short', 'long', 'both', 'ladder', 'progressive')


def get_config(name, arg=''):
  return importlib.import_module(f'configs.{name}').get_config(arg)


def schedule_of(config):
  return grids.schedule(config, grids.dataset_size(config)[0])


@pytest.mark.parametrize('name,arg', RECIPES)
def test_every_recipe_has_a_legal_schedule_in_every_mode(name, arg):
  """All grids divide into tubelets, and the evaluation's too."""
  for mode in MODES:
    config = rules.validate(get_config(name, f'{arg},grid={mode}'))
    config.model.num_classes = 5
    tubelet = config.model.get('tubelet_frames', 1), config.model.patch_px
    for t, h, w, _ in (*schedule_of(config).grids, grids.eval_grid(config)):
      assert (t % tubelet[0], h % tubelet[1], w % tubelet[1]) == (0, 0, 0)
  network.model(config)


def test_videomae_b_on_kinetics_is_trained_as_published():
  config = get_config('kinetics400', 'model=videomae_b,grid=none')
  s = schedule_of(config)
  optim, augment = config.optim, config.augment
  # 64 GPUs of 6 videos, 2 clips of each; 5e-4 at 256 videos.
  assert s.grids == ((16, 224, 224, 768),) and s.total_epochs == 75
  assert s.num_train == 2 * 240_436
  assert s.lr_at_epoch(0) == pytest.approx(1e-6 * 1.5)
  assert s.lr_at_epoch(75) == pytest.approx(1e-6 * 1.5)
  assert s.lr_at_epoch(37.5) == pytest.approx(1.5 * (5e-4 + 1e-6) / 2)
  assert optim.warmup_epochs == 5 and config.data.stride_frames == 4
  assert (optim.name, optim.b1, optim.b2) == ('adamw', 0.9, 0.999)
  assert (optim.weight_decay, optim.decay_on) == (0.05, 'kernels')
  assert (optim.layer_decay, config.model.drop_path) == (0.75, 0.1)
  assert (augment.mixup_alpha, augment.cutmix_alpha) == (0.8, 1.0)
  assert (optim.label_smoothing, augment.erase_probability) == (0.1, 0.25)
  assert augment.randaugment_policy == 'timm' and augment.randaugment_ops == 4
  assert (config.eval.num_views, config.eval.num_crops) == (5, 3)
  assert config.model.head_std == 2e-5
  assert augmentation.augment(config) is not None


def test_videomae_b_on_something_something_is_trained_as_published():
  config = get_config('ssv2', 'model=videomae_b,grid=none')
  assert schedule_of(config).total_epochs == 30
  data, evaluation = config.data, config.eval
  assert (data.sampling, data.num_frames, data.flip) == ('segments', 16, False)
  assert (evaluation.num_views, evaluation.num_crops) == (2, 3)


@pytest.mark.parametrize(
  'size,epochs,rate', [('s', 150, 7.5e-4), ('l', 35, 1e-3), ('h', 50, 2e-3)]
)
def test_other_sizes_have_rates_of_their_own(size, epochs, rate):
  config = get_config('kinetics400', f'model=videomae_{size},grid=none')
  s = schedule_of(config)
  assert s.total_epochs == epochs
  assert s.lr_at_epoch(epochs / 2) == pytest.approx(rate / 2, rel=2e-2)


def test_vjepa2_trains_a_probe_on_a_frozen_backbone():
  config = get_config('ssv2', 'model=vjepa2_l,grid=none')
  s = schedule_of(config)
  assert config.optim.train == 'head' and config.optim.layer_decay == 1
  assert (s.grids, s.total_epochs) == (((16, 256, 256, 256),), 20)
  assert s.lr_at_epoch(0) == 1e-3 and s.lr_at_epoch(20) == 0
  assert config.optim.decay_on == 'all' and not config.data.flip
  assert (config.eval.num_views, config.eval.crop_px) == (2, 256)
  full = get_config('ssv2', 'model=vjepa2_l,tune=full')
  assert (full.optim.train, full.optim.layer_decay) == ('all', 0.75)


def test_rates_follow_the_root_of_the_batch_of_coarse_grids():
  config = get_config('kinetics400', 'model=videomae_b,grid=progressive')
  for phase in schedule_of(config).phases:
    assert phase.lr_scale == pytest.approx((phase.base.batch / 768) ** 0.5)


@pytest.mark.parametrize('name', transformers.NETWORKS)
def test_pixels_are_those_of_the_family(name):
  config = fields.base()
  transformers.set_network(config, name)
  mean, std = {
    'videomae': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'vjepa2': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'vivit': ((0.5,) * 3, (0.5,) * 3),
    'videoprism': ((0.0,) * 3, (1.0,) * 3),
    'timesformer': ((0.45,) * 3, (0.225,) * 3),
    'mvitv2': ((0.45,) * 3, (0.225,) * 3),
  }[name.partition('_')[0]]
  assert (config.data.mean, config.data.std) == (mean, std)


@pytest.mark.parametrize(
  'name,arg,words',
  [
    (
      'kinetics400',
      'tune=probe',
      'tune=probe is one of transformers; model=slo',
    ),
    (
      'ssv2',
      'model=vjepa2_l,tune=head',
      "tune='head'; accepted are 'full' and",
    ),
    (
      'ssv2',
      'model=videomae_b,tune=probe',
      'tune=probe: videomae_b has no probe; use',
    ),
    ('finetune', 'tune=probe', "the network pools by 'mean' and has no probe"),
    (
      'finetune',
      'model=timesformer_b,tune=probe',
      'the network has no probe; use tune=full',
    ),
    (
      'finetune',
      'model=vivit_b,tune=probe',
      "the network pools by 'class' and has no probe",
    ),
    (
      'finetune',
      'weights=a,model=videomae_b',
      'model=videomae_b: a says the ne',
    ),
    ('finetune', 'weights=no/where', 'no/where/config.json'),
  ],
)
def test_what_cannot_be_is_refused(name, arg, words):
  with pytest.raises(ConfigError, match=words):
    get_config(name, arg)


# From weights.


def weights_of(tmp_path, model, **fields):
  """A folder with the config of a run."""
  config = moving_digits.get_config(f'size=tiny,model={model},grid=none')
  config.update_from_flattened_dict(fields)
  (tmp_path / 'config.json').write_text(run_settings.as_text(config))
  return config


def test_fine_tuning_takes_the_network_its_clips_and_pixels_from_weights(
  tmp_path,
):
  old = weights_of(
    tmp_path,
    'vit',
    **{'model.width': 48, 'data.mean': (0.1, 0.2, 0.3), 'data.crop_px': 24},
  )
  config = finetune.get_config(
    f'weights={tmp_path},data=moving_digits/digit_motion,grid=both,flip=false'
  )
  for name in ('depth', 'width', 'heads', 'positions', 'position_grid'):
    assert config.model[name] == old.model[name]
  assert config.model.num_classes is None
  for name in ('mean', 'std', 'num_frames', 'crop_px', 'target_fps'):
    assert config.data[name] == old.data[name]
  assert config.eval.crop_px == old.eval.crop_px
  assert (config.init_from, config.init_head) == (str(tmp_path), 'new')
  assert config.optim.layer_decay == 0.75 and not config.data.flip
  for t, h, w, _ in schedule_of(config).grids:
    assert (t % 2, h % 8, w % 8) == (0, 0, 0)


def test_a_network_of_convolutions_is_fine_tuned_by_sgd(tmp_path):
  weights_of(tmp_path, 'slow')
  config = finetune.get_config(
    f'weights={tmp_path},data=moving_digits/digit_motion'
  )
  assert config.model.name == 'slow' and config.model.blocks == (1, 1)
  assert (config.optim.name, config.optim.decay_on) == ('sgd', 'not_norms')
  assert schedule_of(config).lr_at_epoch(1.5) < 0.001
  config.model.num_classes = 5
  assert augmentation.augment(config) is None
  with pytest.raises(ConfigError, match='tune=probe: the network has no probe'):
    finetune.get_config(f'weights={tmp_path},tune=probe')
