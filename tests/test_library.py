"""What `import mgjax` gives, without waiting for JAX."""

import re
import subprocess
import sys

import pytest

import mgjax


def test_importing_it_imports_none_of_its_dependencies():
  script = """
import sys
before = set(sys.modules)
import mgjax
mgjax.__version__, mgjax.__all__, dir(mgjax)
print(*{name.split('.')[0] for name in set(sys.modules) - before})
"""
  imported = _run(script)
  known = set(sys.stdlib_module_names) | {'mgjax'}
  assert not set(imported.split()) - known


def test_a_schedule_needs_no_jax():
  script = """
import sys
import mgjax
schedule = mgjax.make_schedule(
  frames=4, height=32, width=32, batch=4, epochs=2, num_train=16, lr_steps=(1,))
schedule.lr(0), schedule.bn_groups(0)
print('jax' in sys.modules)
"""
  assert _run(script).strip() == 'False'


@pytest.mark.parametrize('name', mgjax.__all__)
def test_every_public_name_is_there_and_described(name):
  value = getattr(mgjax, name)
  assert name in dir(mgjax)
  if name != '__version__':
    assert value.__doc__
    assert re.search(rf'\b{name}\b', mgjax.__doc__)


def test_another_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="'mgjax' has no attribute 'grid'"):
    mgjax.grid  # noqa: B018
  assert not hasattr(mgjax, '__path')


def _run(script):
  return subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True, check=True
  ).stdout
