"""What a compiler makes of convolutions is kept, a way at a time."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tabulate
from experiments.bench import compiled_layouts, layouts
from mgjax import cli
from mgjax.models import conv


def run(folder, *flags):
  return cli.run(
    compiled_layouts.main,
    compiled_layouts.define_flags,
    ['x', '--target=cpu', '--small', f'--records={folder}', *flags],
    takes_config=False,
  )


def test_a_way_is_compiled_once(tmp_path, capsys):
  assert run(tmp_path, '--only=native') == 0
  assert 'compiling: native' in capsys.readouterr().err
  entry = json.loads((tmp_path / 'cpu.json').read_text())
  assert entry['commit']
  assert entry['ways']['native']['peak_bytes'] > 0
  assert len(compiled_layouts.table([entry]).rows) == 1
  assert run(tmp_path, '--only=native') == 0
  printed = capsys.readouterr()
  assert 'compiling' not in printed.err
  assert tabulate.markdown(compiled_layouts.table([entry])) in printed.out


def test_a_record_of_other_code_is_not_added_to(tmp_path, capsys):
  entry = {'ways': {'native': {}}, 'commit': 'another', 'changed_files': ''}
  (tmp_path / 'cpu.json').write_text(json.dumps(entry))
  assert run(tmp_path) == 2
  assert 'give another --name' in capsys.readouterr().err
  assert run(tmp_path, '--name=cpu-2', '--only=native') == 0
  assert (tmp_path / 'cpu-2.json').exists()


def test_a_way_that_a_target_lacks_is_named(tmp_path, capsys):
  assert run(tmp_path, '--only=native;frames in channels') == 2
  said = capsys.readouterr().err
  assert "'frames in channels' is no way of cpu" in said
  assert 'accepted are native; folded; two axes' in said


@pytest.mark.parametrize('kernel', [(1, 1, 1), (3, 1, 1), (1, 3, 3), (5, 7, 7)])
@pytest.mark.parametrize(
  'strides', [(1, 1, 1), (1, 2, 2), (2, 1, 1), (4, 2, 2)]
)
def test_convolutions_of_two_axes_are_those_of_three(kernel, strides):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 7, 9, 8, 3)), jnp.float32)
  weights = jnp.asarray(rng.normal(size=(*kernel, 3, 4)), jnp.float32)
  np.testing.assert_allclose(
    layouts.by_two_axes(x, weights, strides=strides),
    conv.conv3d(x, weights, strides=strides, formulation='native'),
    atol=1e-4,
  )
