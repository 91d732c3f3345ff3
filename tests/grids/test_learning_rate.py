"""learning_rate.py: texts that call schedules of optax."""

import math

import pytest

from mgjax.errors import ConfigError
from mgjax.grids import make_schedule


def run(text, mode):
  return make_schedule(
    frames=32,
    height=224,
    width=224,
    batch=64,
    epochs=239,
    num_train=240_000,
    mode=mode,
    lr_schedule=text,
  )


def test_any_schedule_of_optax_can_be_called():
  text = (
    'optax.linear_schedule(init_value=0.2, end_value=0.0, transition_steps=239)'
  )
  s = run(text, 'none')
  assert s.lr_at_epoch(0) == pytest.approx(0.2)
  assert s.lr_at_epoch(119.5) == pytest.approx(0.1)


def half_cosine(epoch, start, length):
  return 0.5 * (1 + math.cos(math.pi * min((epoch - start) / length, 1)))


# Calls, and the same as a formula of the baseline's epochs.
NESTED = {
  'optax.join_schedules([optax.linear_schedule(0.0, 0.2, 100), '
  'optax.cosine_decay_schedule(0.2, decay_steps=139)], [100])': lambda e: (
    0.002 * e if e < 100 else 0.2 * half_cosine(e, 100, 139)
  ),
  "optax.sgdr_schedule([{'init_value': 0.0, 'peak_value': 0.2, "
  "'warmup_steps': 0, 'decay_steps': 100}, {'init_value': 0.0, "
  "'peak_value': 0.1, 'warmup_steps': 0, 'decay_steps': 139}])": lambda e: (
    0.2 * half_cosine(e, 0, 100) if e < 100 else 0.1 * half_cosine(e, 100, 139)
  ),
  'optax.piecewise_constant_schedule(0.1, {100: 0.5, 200: 0.1})': lambda e: (
    0.1 * (0.5 if e > 100 else 1) * (0.1 if e > 200 else 1)
  ),
  'optax.linear_schedule(0.2, -0.0, 239)': lambda e: 0.2 * (1 - e / 239),
}


@pytest.mark.parametrize('mode', ['none', 'both'])
@pytest.mark.parametrize('text', NESTED)
def test_schedules_of_optax_can_be_nested(text, mode):
  s = run(text, mode)
  starts = [0, *(p.end_epoch for p in s.phases)]
  for phase, start, end in zip(s.phases, starts, starts[1:], strict=False):
    for epoch in (start + 0.01, (start + end) / 2, end - 0.01):
      baseline = NESTED[text](epoch / s.total_epochs * 239)
      # optax computes in float32.
      assert s.lr_at_epoch(epoch) == pytest.approx(
        baseline * phase.lr_scale, rel=1e-4, abs=1e-6
      )


@pytest.mark.parametrize('mode', ['none', 'both'])
@pytest.mark.parametrize(
  'text,message',
  [
    ('cosin', 'use .steps., .cosine., .constant. or a call'),
    ('', 'use .steps.'),
    ('0.1', 'use .steps.'),
    ('[optax.constant_schedule(0.1)]', 'use .steps.'),
    ('linear_schedule(init_value=1.0)', 'use .steps.'),
    ('os.system("true")', 'use .steps.'),
    ('optax.linear_schedule(init_value=open("x"))', 'use .steps.'),
    ('optax.linear_schedule(**{})', 'use .steps.'),
    ('optax.linear_schedule(*[0.1, 0.0, 20])', 'use .steps.'),
    ('optax.linear_schedule(0.1, 0.0, 10**10)', 'use .steps.'),
    ('optax.sgdr_schedule([{**{}}])', 'use .steps.'),
    ('optax.join_schedules([optax.x for x in y], [1])', 'use .steps.'),
    ('__import__("os").linear_schedule()', 'use .steps.'),
    ('optax.adam(learning_rate=0.1)', "no schedule 'adam'; it has constant_"),
    ('optax.inject_hyperparams(optax.sgd)', "schedule 'inject_hyperparams'"),
    ('optax.no_such_schedule(init=3)', "no schedule 'no_such_schedule'"),
    ('optax.join_schedules([optax.adam(0.1)], [])', "no schedule 'adam'"),
    ('optax.linear_schedule(init=3)', 'fails: TypeError'),
    ('optax.join_schedules([0.1, 0.2], [100])', 'fails: TypeError'),
    ("optax.sgdr_schedule([{'init_value': 0.1}])", 'fails: TypeError'),
    ('optax.constant_schedule(1e999)', 'starts at inf'),
    pytest.param(
      'optax.constant_schedule(' + '-' * 100_000 + '1)',
      'use .steps.',
      id='signs in a call',
    ),
    pytest.param('-' * 100_000 + '1', 'use .steps.', id='signs'),
    pytest.param('(' * 100_000, 'use .steps.', id='brackets'),
    ('optax.constant_schedule(-0.1)', 'the learning rate is -0.*at epoch 0'),
    (
      'optax.linear_schedule(0.1, -0.1, 239)',
      r'the learning rate is -[0-9.e-]+ at epoch 1\d\d.*; it must be a finite',
    ),
    (
      'optax.join_schedules([optax.constant_schedule(0.2), '
      'optax.constant_schedule(-0.2), optax.constant_schedule(0.2)], '
      '[100, 110])',
      'the learning rate is -[0-9.]+ at epoch 1',
    ),
  ],
)
def test_a_schedule_that_is_not_a_call_of_optax_is_refused(text, message, mode):
  with pytest.raises(ConfigError, match=rf'^`lr_schedule`.*{message}'):
    run(text, mode)
