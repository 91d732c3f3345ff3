"""The rooms of mgjax stand in an order, and imports go down only.

All modules are parsed, none is imported. Exceptions stand in the tables below
with their reasons; each of their rows must be true, so that they get shorter.
"""

import ast
import functools
import pathlib

import pytest

# What the commands call once their flags are right: this composes a run, and
# so stands above the room that it is in.
BODIES = (
  *('run.launch', 'run.loop', 'run.measuring', 'run.outputs', 'run.replaying'),
  *('run.report', 'run.run_summary', 'run.step_log'),
  *('planning.ahead', 'planning.command', 'planning.compiled'),
  'planning.plan_budget',
  *('evaluation.command', 'predicting.command', 'predicting.loading'),
  *('predicting.streaming', 'weights.command'),
  *('exporting.command', 'exporting.framework_files'),
  'data.decode_rates',
)
COMMANDS = (
  *('train', 'evaluate', 'predict', 'plan', 'replay', 'import_weights'),
  'export',
  *('data.prepare', 'data.bench', 'data.moving_digits'),
)
# From the foundations up: a module imports from its own room and from groups
# further up in this list.
ORDER = (
  ('errors', 'environment', 'progress', 'stop_signal'),
  ('files',),
  ('grids',),
  ('pictures',),
  ('config',),
  ('cli',),
  ('cpu', 'tpu'),
  ('models',),
  ('hosts',),
  ('step',),
  ('data',),
  ('run',),
  ('weights',),
  ('planning',),
  ('evaluation',),
  ('predicting',),
  ('exporting',),
  ('setup',),
  BODIES,
  COMMANDS,
  # Commands that call others.
  ('new', 'weights.published', 'weights.__main__'),
  ('recipes',),
)
# Who may see a whole config. The parts of a command have its settings.
SEE_CONFIG = ('config', 'cli', 'setup', 'recipes', *BODIES, *COMMANDS)

# Imports inside functions, with the reason.
_NO_JAX = 'a plan that is refused takes no JAX'
_NO_READER = 'a plan opens no video: no TFDS, no decoder'
INSIDE = {
  ('environment', 'describe'): 'preparing data takes no JAX',
  ('planning.command', 'main'): _NO_JAX,
  ('planning.command', '_plan'): _NO_JAX,
  ('setup.planning', 'check_parameters'): _NO_JAX,
  ('setup.planning', 'check_own_network'): _NO_JAX,
  ('setup.clip_costs', 'gmacs_per_clip'): _NO_JAX,
  ('planning.targets', 'find'): _NO_JAX,
  ('setup.wall_time', '_file'): _NO_JAX,
  ('setup.wall_time', '_work'): _NO_JAX,
  ('setup.data', 'class_weights'): _NO_READER,
  ('setup.data', 'decoded_cache'): _NO_READER,
  ('setup.data', 'describe'): _NO_READER,
  ('setup.data', 'eval_stream'): _NO_READER,
  ('setup.data', 'source'): _NO_READER,
  ('setup.data', 'train_stream'): _NO_READER,
  ('setup.data', 'views'): _NO_READER,
  ('setup.data', 'workers'): _NO_READER,
  ('grids.learning_rate', '_optax_makers'): 'optax imports JAX',
  ('data.prepare.beam', 'write'): 'an optional package',
  ('weights.published', 'main'): 'a list takes no checkpoints',
  ('new.command', 'find_weights'): 'a start from scratch takes no checkpoints',
  ('weights.hub', 'local'): 'an optional package',
  ('exporting.onnx_file', 'dump'): 'an optional package',
  ('exporting.onnx_file', 'load'): 'an optional package',
}
# Functions that are longer, with the reason.
LONG_FUNCTIONS = {
  ('weights.pyslowfast_cfg', 'facts'): 'a table: names of two programs',
}
# Rooms that see a config all the same, with the reason.
CONFIG_IN_ROOMS = {
  'weights.facts': 'sets what another program has said',
}

MAX_LINES = 500  # Of a file.
MAX_FUNCTION_LINES = 60  # Its docstring does not count.

PACKAGE = pathlib.Path(__file__).parents[1] / 'mgjax'


@functools.cache
def modules() -> dict[str, ast.Module]:
  """All modules by name, without 'mgjax.'; '' is the package itself."""
  found = {}
  for path in sorted(PACKAGE.rglob('*.py')):
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    name = '.'.join(part for part in parts if part != '__init__')
    found[name] = ast.parse(path.read_text())
  return found


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
  return [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
  ]


def imports(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
  return [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.Import | ast.ImportFrom)
  ]


def imported(tree: ast.AST) -> set[str]:
  """The modules of mgjax that a module imports, without 'mgjax.'."""
  found = set()
  for node in imports(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    else:
      assert not node.level, 'imports are absolute'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    for name in names:
      package, _, name = name.partition('.')
      if package != 'mgjax':
        continue
      while name not in modules():  # A name of a module; or of the package.
        name = name.rpartition('.')[0]
      found.add(name)
  return found - {''}


def packages(tree: ast.AST) -> set[str]:
  """Other packages that a module imports."""
  return {
    (node.module or '') if isinstance(node, ast.ImportFrom) else alias.name
    for node in imports(tree)
    for alias in node.names
  }


def place(module: str) -> tuple[int, str]:
  """Where a module stands in the order, and the name there: the longest."""
  parts = module.split('.')
  for length in range(len(parts), 0, -1):
    name = '.'.join(parts[:length])
    for level, group in enumerate(ORDER):
      if name in group:
        return level, name
  raise AssertionError(f'{module} has no place in ORDER')


@pytest.mark.parametrize('module', [name for name in modules() if name])
def test_imports_go_down(module):
  level, name = place(module)
  up = set()
  for other in imported(modules()[module]):
    other_level, other_name = place(other)
    same_room = name == other_name
    both_bodies = name in BODIES and other_name in BODIES
    if other_level >= level and not (same_room or both_bodies):
      up.add((module, other))
  assert not up


def made(tree: ast.Module) -> set[str]:
  """Names that a module itself defines at its top."""
  found = set()
  for node in tree.body:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
      found.add(node.name)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      names = (n for target in targets for n in ast.walk(target))
      found |= {name.id for name in names if isinstance(name, ast.Name)}
  return found


@pytest.mark.parametrize('module', modules())
def test_a_name_is_imported_from_where_it_is_made(module):
  """Or from a package, whose `__init__` says what the room offers."""
  elsewhere = set()
  for node in imports(modules()[module]):
    if not isinstance(node, ast.ImportFrom):
      continue
    package, _, other = node.module.partition('.')
    is_package = (PACKAGE / other.replace('.', '/')).is_dir()
    if package == 'mgjax' and not is_package:
      names = {alias.name for alias in node.names}
      elsewhere |= names - made(modules()[other])
  assert not elsewhere


def test_there_is_no_circle_among_the_modules():
  # A module may import itself by name, for what is pickled.
  graph = {n: imported(tree) - {n} for n, tree in modules().items() if n}
  while ends := [name for name, others in graph.items() if not others]:
    for name in ends:
      del graph[name]
    graph = {name: others - {*ends} for name, others in graph.items()}
  assert not graph, f'these import each other, or what does: {sorted(graph)}'


def test_rooms_take_values_and_not_the_config():
  """Who takes a config names its type, from ml_collections."""
  seeing = {
    name
    for name, tree in modules().items()
    if name and any('ml_collections' in p for p in packages(tree))
  }
  allowed = {
    name
    for name in seeing
    if any(name == s or name.startswith(f'{s}.') for s in SEE_CONFIG)
  }
  assert seeing - allowed == CONFIG_IN_ROOMS.keys()


def test_all_commands_have_flags_of_one_kind():
  assert not {n for n, t in modules().items() if 'argparse' in packages(t)}


def test_grids_import_no_jax_and_no_model():
  for name, tree in modules().items():
    if name.startswith('grids'):
      for package in packages(tree):
        assert package.split('.')[0] not in ('jax', 'flax'), name


def test_nothing_asks_which_backend_jax_has_found():
  """Programs are for the devices of a mesh, which may be elsewhere."""
  assert not {
    name
    for name, tree in modules().items()
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and node.attr == 'default_backend'
  }


def test_no_import_is_inside_a_function_but_with_a_reason():
  found = {
    (name, function.name)
    for name, tree in modules().items()
    for function in functions(tree)
    if imports(function)
  }
  assert found == INSIDE.keys()


def test_no_file_is_longer_than_a_person_reads():
  found = set()
  for name in modules():
    path = PACKAGE.joinpath(*name.split('.'))
    path = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
    if path.read_text().count('\n') > MAX_LINES:
      found.add(name)
  assert not found


def test_no_function_is_longer_than_a_screen():
  found = set()
  for name, tree in modules().items():
    for function in functions(tree):
      lines = function.end_lineno - function.lineno + 1
      if ast.get_docstring(function) is not None:
        doc = function.body[0]
        lines -= doc.end_lineno - doc.lineno + 1
      if lines > MAX_FUNCTION_LINES:
        found.add((name, function.name))
  assert found == LONG_FUNCTIONS.keys()
