"""Networks as programs of ONNX, and what is taken out of them before."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgjax.exporting import onnx_file
from mgjax.models import conv
from tests.exporting import networks
from tests.exporting.test_export import (
  EACH,
  assert_close,
  clips_of,
  in_another_process,
  logits_of,
  run,
  usage_of,
)

missing = [
  name
  for name in ('jax2onnx', 'onnx', 'onnxruntime')
  if importlib.util.find_spec(name) is None
]
# jax2onnx 0.17 pads arrays only whose sizes are all known.
ANY_BATCH = ('videomae', 'vivit', 'loop', 'timesformer')
ONNX_ALONE = """
import os
import sys
{usage}
assert scores.shape == ({batch}, 5), scores.shape
clips = np.load(os.environ['CLIPS'])
outputs = ['logits', 'scores']
found = session.run(outputs, {{'video': clips}})
np.savez(os.environ['OUT'], **dict(zip(outputs, found)))
others = [n for n in sys.modules if n.split('.')[0] in ('mgjax', 'jax')]
assert not others, others
"""


@pytest.mark.skipif(
  bool(missing), reason=f'not installed: {", ".join(missing)}'
)
@pytest.mark.parametrize('name', EACH)
def test_a_program_needs_onnxruntime_alone_and_gives_the_logits(
  name, tmp_path, capsys
):
  config = networks.config_of(name)
  variables = networks.write_run(tmp_path / 'run', config)
  folder = tmp_path / 'made'
  code, printed = run(
    *(capsys, f'--workdir={tmp_path / "run"}', '--to=onnx', f'--out={folder}'),
    *(() if name in ANY_BATCH else ('--batch=3',)),
  )
  if name == 'videoprism':
    assert code == 1
    assert 'onnxruntime refuses' in printed.err
    assert 'use --to=stablehlo' in printed.err
    assert not folder.exists()
    return
  assert code == 0, printed.err
  clips = clips_of(config, 3)
  program = ONNX_ALONE.format(
    usage=usage_of(folder), batch=1 if name in ANY_BATCH else 3
  )
  found = in_another_process(folder, program, clips)
  wanted = logits_of(config, variables, clips)
  assert_close(found['logits'], wanted, 1e-5)
  np.testing.assert_allclose(
    found['scores'], jax.nn.softmax(wanted), rtol=0, atol=1e-5
  )


def test_without_the_packages_the_error_says_how_to_get_them(
  tmp_path, capsys, monkeypatch
):
  networks.write_run(tmp_path / 'run', networks.config_of('tam'))
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *args: None if name == 'jax2onnx' else find(name, *args),
  )
  code, printed = run(
    *(capsys, f'--workdir={tmp_path / "run"}', '--to=onnx'),
    f'--out={tmp_path / "made"}',
  )
  assert code == 2 and printed.err.count('\n') == 1
  assert (
    'jax2onnx' in printed.err and "pip install 'mgjax[onnx]'" in printed.err
  )


def primitives(jaxpr):
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple) else (value,):
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from primitives(inner)


def test_no_choice_and_no_rule_for_gradients_is_left():
  kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, 4, 4))

  @functools.partial(jax.jit, inline=False)
  def function(video):
    x = conv.conv3d(video, kernel, strides=(1, 2, 2))
    return (jax.nn.gelu(conv.join(x, conv.relu(x))), x.sum())

  video = jax.random.normal(jax.random.key(1), (2, 4, 12, 12, 4))
  plain = onnx_file.without_choices(function, video)
  left = set(primitives(jax.make_jaxpr(plain)(video).jaxpr))
  choices = {'cond', 'platform_index', 'optimization_barrier', 'jit', 'pjit'}
  assert not left & (choices | {'custom_vjp_call', 'custom_jvp_call'})
  assert choices & set(primitives(jax.make_jaxpr(function)(video).jaxpr))
  for found, wanted in zip(plain(video), function(video), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_numbers_have_the_type_of_their_use():
  plain = onnx_file.without_choices(lambda x: (jnp.pad(x, 1),), jnp.ones(3))
  (pad,) = [
    equation
    for equation in jax.make_jaxpr(plain)(jnp.ones(3)).jaxpr.eqns
    if equation.primitive.name == 'pad'
  ]
  value = pad.invars[1]
  assert hasattr(value, 'val') and value.aval.dtype == np.float32
