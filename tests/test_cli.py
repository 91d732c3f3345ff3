"""Whatever goes wrong in a command ends in one line, before what takes time."""

import errno
import os
import pathlib
import re
import subprocess
import sys

import pytest

from mgjax import cli, evaluate, import_weights, train
from mgjax import plan as plan_flags
from mgjax.cli import ConfigError, RunError
from mgjax.data import bench, decode_rates
from mgjax.evaluation import command as evaluation
from mgjax.planning import command
from mgjax.run import launch
from mgjax.weights import command as transfer

FOLDER = pathlib.Path(__file__).parents[1]
DIGITS = 'configs/moving_digits.py:size=tiny'

BASE = """from mgjax.config import fields

def get_config():
  config = fields.base()
"""


# Config files.


@pytest.mark.parametrize(
  'text,words',
  [
    (
      BASE + '  config.seed = = 3',
      r'FILE:5: SyntaxError: invalid syntax \(con',
    ),
    (
      BASE + '   config.seed = 3',
      'FILE:5: IndentationError: unexpected indent',
    ),
    ('x = 3\0', 'FILE.*null bytes'),
    ('x = "\xff"', r'FILE:1: SyntaxError: \(unicode error\)'),
    ('x = ' + '(' * 1000, 'FILE:1: SyntaxError: too many nested parentheses'),
    ('x = ' + '-' * 100_000 + '1', 'FILE.*(MemoryError|RecursionError)'),
    ('', r'FILE: there is no function get_config\(\)'),
    ('get_config = 3', r'FILE: there is no function get_config\(\)'),
    (BASE, r'FILE: get_config\(\) returns nothing; is `return config` missing'),
    ('def get_config():\n  return {}', r'FILE: get_config\(\) returns a dict'),
    ('def get_config(a):\n  pass', r'get_config\(\) needs arguments after'),
    (
      'import surely_not_there',
      'FILE:1: ModuleNotFoundError .*surely_not_there',
    ),
    (
      BASE + '  1 / 0',
      r'FILE:5: ZeroDivisionError \(1 / 0\): division by zero',
    ),
    (BASE + '  raise SystemExit(0)', 'FILE:5: SystemExit'),
    (
      BASE + '  config.optim.base_lrr = 3',
      r"FILE:5: there is no field 'base_lrr' \(config.optim.base_lrr = 3\); "
      "did you mean 'base_lr'",
    ),
    (
      BASE + '  print(config.optim.base_lrr)',
      "FILE:5: there is no field 'base_lrr' .* did you mean 'base_lr'",
    ),
    (
      BASE + "  config['optim']['zzz'] = 3",
      "FILE:5: there is no field 'zzz'",
    ),
    (
      BASE + "  config.update({'datta': {}})",
      "FILE:5: there is no field 'datta' .* did you mean 'data'",
    ),
    (
      BASE + '  config.optim.width = 3',
      r"FILE:5: there is no field 'width' \(config.optim.width = 3\)\. \S*fi",
    ),
    (
      BASE + '  config.model.shift_div = 3',
      "FILE:5 .*: there is no field model.shift_div. model.name='slowfast' has "
      "no such option; that is one of 'tsm'. .*network_options.py lists",
    ),
    (
      BASE + '  config.data.crop_pix = 3',
      'FILE:5 .*: there is no field data.crop_pix. Did you mean .crop_px.*fiel',
    ),
    (
      BASE + "  config.model = {'name': 'slow'}",
      'FILE:5: model is a section .*ne by one, model.name first',
    ),
    (
      'from mgjax.config import fields\nfields.base().model.name = "x3d"',
      "FILE:2 .*: model.name is 'x3d'",
    ),
    (
      BASE + '  config.data.name = 3',
      'FILE:5 .*: data.name is 3; it must be the name of a data set',
    ),
    (
      BASE + '  config.data.batch_size = 8.0',
      'FILE:5: batch_size is 8.0, of type float .* must be of type int',
    ),
    (
      BASE + '  config.optim.base_lr = "a"',
      'FILE:5: base_lr is a, of type str .* must be of type float',
    ),
    (
      BASE + '  config.data.batch_size = None\n  return config',
      'FILE: data.batch_size is None, of type NoneType; it must be of type int',
    ),
    (
      BASE + '  config.data.batch_size = True\n  return config',
      'FILE: data.batch_size is True, of type bool; it must be of type int',
    ),
    (
      BASE
      + '  config.unlock()\n  config.data.batch_sizze = 3\n  return config',
      r'FILE: there is no field data.batch_sizze\. Did you mean .batch_size',
    ),
    (
      BASE + '  config.unlock()\n  del config.data.flip\n  return config',
      r'FILE: the config has no field data.flip; start from mgjax.config.fi',
    ),
    (
      'import ml_collections\n'
      'def get_config():\n  return ml_collections.ConfigDict({"seed": 0})',
      r'FILE: the config has no field .* \(\d+ more are missing\); start from',
    ),
    (
      'from mgjax.cli import ConfigError\n'
      'def get_config():\n  raise ConfigError("colour=red; accepted is blue")',
      '^colour=red; accepted is blue$',
    ),
  ],
)
def test_an_error_in_a_config_file_is_told_with_file_and_line(
  tmp_path, text, words
):
  path = tmp_path / 'mine.py'
  path.write_bytes(text.encode('latin-1'))
  with pytest.raises(ConfigError) as refused:
    cli.read_config(str(path))
  said = str(refused.value)
  assert re.search(words.replace('FILE', re.escape(str(path))), said), said
  assert len(said) < 500


def test_fields_of_a_config_file_may_have_any_type_that_works(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    BASE
    + """
  config.optim.base_lr = 1
  config.data.num_train = 8
  config.data.crop_width_px = None
  config.data.mean = [0.4, 0.4, 0.4]
  config.model.blocks = (1, 1)
  return config
"""
  )
  config = cli.read_config(str(path))
  assert config.optim.base_lr == 1.0 and config.data.num_train == 8


@pytest.mark.parametrize(
  'argument,words',
  [
    ('README.md', r'^README.md:\d+: SyntaxError.*a config file is a Python'),
    ('nosuch.py', r'^--config=nosuch.py: cannot read .*\(No such file'),
    ('nosuch.py:grid=both', '^--config=nosuch.py:grid=both: cannot read'),
    ('configs', r'cannot read the config file \(Is a directory\)'),
    ('', r'cannot read the config file \(it has no name\)'),
    ('configs/__init__.py', r'there is no function get_config\(\)'),
    ('configs/moving_digits.py:sise=tiny', "^config argument 'sise=tiny' is u"),
    ('configs/moving_digits.py:', None),
  ],
)
def test_what_is_no_config_file_is_refused(argument, words, monkeypatch):
  monkeypatch.chdir(FOLDER)
  if words is None:
    assert cli.read_config(argument).seed == 0
    return
  with pytest.raises(ConfigError, match=words):
    cli.read_config(argument)


def test_a_config_file_without_arguments_takes_none(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(BASE + '  return config')
  with pytest.raises(ConfigError, match='takes no arguments after the colon'):
    cli.read_config(f'{path}:seed=1')


@pytest.mark.parametrize(
  'override,words',
  [
    ('optim.base_lrr=3', 'there is no such field. Did you mean .base_lr.'),
    ('optm.base_lr=3', "there is no field 'optm'. Did you mean 'optim'"),
    ('seed.x=3', 'there is no such field'),
    ('data.mean[0]=3', "there is no such field. Did you mean 'mean'"),
    ('data.batch_size=8.0', "invalid literal for int.*'8.0'"),
    ('data={}', '--config.data is a section; set its fields'),
    ('data.flip=7', 'Non-boolean argument to boolean flag'),
    ("model.blocks=('a',)", 'model.blocks is .* must be a tuple of integers'),
  ],
)
def test_an_override_that_cannot_work_is_refused(override, words):
  with pytest.raises(ConfigError, match=words):
    cli.read_config(f'{FOLDER}/{DIGITS}', [f'--config.{override}'])


@pytest.mark.parametrize('space', [' ', '='])
def test_a_name_brings_its_options_in_either_form_of_a_flag(space):
  flags = f'--config.model.name{space}tsm --config.model.shift_div{space}4'
  config = cli.read_config(f'{FOLDER}/{DIGITS}', flags.split())
  assert config.model.shift_div == 4


# Errors of any kind.


def fail_with(error):
  def command():
    raise error

  return command


@pytest.mark.parametrize(
  'error,code,words',
  [
    (ConfigError('a b\nc'), 2, '^error: a b c$'),
    (RunError('a b\nc'), 1, '^error: a b c$'),
    (KeyboardInterrupt(), 130, '^error: interrupted$'),
    (
      OSError(errno.ENOSPC, 'No space left on device', 'x/y'),
      1,
      '^error: x/y: No space left on device$',
    ),
    (
      OSError(errno.EACCES, 'Permission denied', b'x'),
      1,
      '^error: x: Permission denied$',
    ),
    (
      OSError(errno.ENOSPC, 'No space left on device'),
      1,
      '^error: a file that was open: No space left',
    ),
    (MemoryError(), 1, '^error: the memory of this machine is used up$'),
    (
      RuntimeError('RESOURCE_EXHAUSTED: Out of memory while\ntrying'),
      1,
      '^error: the memory of the device is used up: RESOURCE_EXHAUSTED.*remat',
    ),
  ],
)
def test_what_a_person_can_act_on_is_one_line(
  error, code, words, capsys, monkeypatch
):
  monkeypatch.delenv('MGJAX_TRACEBACK', raising=False)
  assert cli.guard(fail_with(error)) == code
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and re.search(words, said)


def test_the_traceback_of_the_users_own_code_is_shown_if_asked_for(
  capsys, monkeypatch
):
  monkeypatch.setenv('MGJAX_TRACEBACK', '1')
  error = ConfigError('it fails')
  assert cli.guard(fail_with(error)) == 2
  assert 'Traceback' not in capsys.readouterr().err
  error.__cause__ = KeyError('theirs')
  assert cli.guard(fail_with(error)) == 2
  assert "KeyError: 'theirs'" in capsys.readouterr().err


@pytest.mark.parametrize(
  'error', [KeyError('x'), RecursionError('too deep'), OSError('no number')]
)
def test_a_bug_is_one_line_that_says_where_its_traceback_is(
  error, capsys, monkeypatch, tmp_path
):
  monkeypatch.delenv('MGJAX_TRACEBACK', raising=False)
  monkeypatch.setattr(cli.tempfile, 'tempdir', str(tmp_path))
  assert cli.guard(fail_with(error)) == 1
  said = capsys.readouterr().err
  assert said.count('\n') == 1
  line = fail_with.__code__.co_firstlineno + 2
  assert f'{type(error).__name__} at {__file__}:{line}: ' in said
  assert 'this is a bug' in said
  (file,) = tmp_path.iterdir()
  assert str(file) in said
  assert 'Traceback (most recent call last)' in file.read_text()
  # Asked for, it is shown instead.
  monkeypatch.setenv('MGJAX_TRACEBACK', '1')
  assert cli.guard(fail_with(error)) == 1
  assert 'Traceback (most recent call last)' in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == [file]


def test_the_traceback_of_a_bug_is_shown_where_it_cannot_be_kept(
  capsys, monkeypatch, tmp_path
):
  monkeypatch.delenv('MGJAX_TRACEBACK', raising=False)
  monkeypatch.setattr(cli.tempfile, 'tempdir', str(tmp_path / 'not there'))
  assert cli.guard(fail_with(KeyError('x'))) == 1
  said = capsys.readouterr().err
  assert 'Traceback (most recent call last)' in said
  assert said.splitlines()[-1].startswith('error: KeyError at ')


def script(body: str, **options) -> subprocess.CompletedProcess:
  """Runs `body` under the guard in another Python."""
  lines = ''.join(f'  {line}\n' for line in body.splitlines())
  text = (
    'import sys\nfrom mgjax import cli\n'
    f'def command():\n{lines}sys.exit(cli.guard(command))\n'
  )
  env = {k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'}
  return subprocess.run(
    [sys.executable, '-c', text],
    stderr=subprocess.PIPE,
    text=True,
    cwd=FOLDER,
    env=env | options.pop('env', {}),
    **options,
  )


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_every_character_is_printed_whatever_the_terminal_knows(encoding):
  body = "print('8² ± 漢字')\nprint('8² ± 漢字', file=sys.stderr)"
  body += "\nprint('\\udcff')"
  ended = script(
    body,
    env={'PYTHONIOENCODING': encoding},
    stdout=subprocess.PIPE,
    encoding='utf-8',
    errors='replace',
  )
  assert ended.returncode == 0
  assert '8' in ended.stdout and 'Error' not in ended.stderr
  if encoding == 'ascii':
    want = '8\\xb2 \\xb1 \\u6f22\\u5b57\n'
    assert (ended.stdout, ended.stderr) == (want + '\\udcff\n', want)


def test_a_reader_that_has_seen_enough_is_no_error():
  reader, writer = os.pipe()
  os.close(reader)
  for body in ("print('x')", "print('x' * 100_000)"):
    ended = script(body, stdout=writer)
    assert (ended.returncode, ended.stderr) == (0, '')
  os.close(writer)


def test_a_broken_pipe_that_is_not_the_output_is_an_error():
  body = "raise BrokenPipeError(32, 'Broken pipe')"
  ended = script(body, stdout=subprocess.DEVNULL)
  assert ended.returncode == 1
  assert ended.stderr == 'error: a file that was open: Broken pipe\n'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux')
def test_an_output_that_cannot_be_written_is_one_line():
  with open('/dev/full', 'w') as full:
    ended = script("print('x')", stdout=full)
  assert ended.returncode == 1
  assert ended.stderr == 'error: the output: No space left on device\n'


def test_a_device_that_is_not_there_is_one_line(tmp_path):
  command = ['train', f'--config={DIGITS}', f'--workdir={tmp_path / "w"}']
  ended = subprocess.run(
    [sys.executable, '-m', f'mgjax.{command[0]}', *command[1:]],
    env=os.environ | {'JAX_PLATFORMS': 'cuda'},
    capture_output=True,
    text=True,
    cwd=FOLDER,
  )
  assert ended.returncode == 2 and ended.stderr.count('\n') == 1
  assert "finds no device for JAX_PLATFORMS='cuda'" in ended.stderr
  assert 'set it to cpu' in ended.stderr
  assert not (tmp_path / 'w').exists()


# Before what takes time.

COMMANDS = [
  *(f'mgjax.{name}' for name in ('train', 'evaluate', 'predict', 'plan')),
  *(f'mgjax.{name}' for name in ('replay', 'import_weights', 'data.bench')),
  *(f'mgjax.{name}' for name in ('new', 'weights', 'export')),
  *(f'mgjax.data.{name}' for name in ('prepare', 'moving_digits')),
  *(
    '.'.join(path.relative_to(FOLDER).with_suffix('').parts)
    for path in sorted((FOLDER / 'experiments').rglob('*.py'))
    if "if __name__ == '__main__':" in path.read_text()
    and not path.stem.endswith('_worker')  # Have no flags.
  ),
]
WITH_CONFIG = [
  'mgjax.train',
  'mgjax.evaluate',
  'mgjax.predict',
  'mgjax.plan',
  'mgjax.replay',
  'mgjax.import_weights',
  'mgjax.export',
  'mgjax.data.bench',
  'experiments.bench.grid_step_times',
]


def test_an_error_in_the_flags_is_told_before_jax_is_imported():
  wrong = [(name, '--nosuch=1') for name in COMMANDS]
  for name in WITH_CONFIG:
    wrong.append((name, f'--config={DIGITS} --config.optim.base_lrr=1'))
    wrong.append((name, '--config=README.md'))
  text = f"""if True:
    import contextlib, io, runpy, sys
    for name, arguments in {wrong!r}:
      sys.argv = [name, *arguments.split()]
      said = io.StringIO()
      try:
        with contextlib.redirect_stderr(said):
          runpy.run_module(name, run_name='__main__', alter_sys=True)
      except SystemExit as ended:
        assert ended.code == 2, (name, arguments, ended.code, said.getvalue())
      else:
        raise AssertionError(name)
      said = said.getvalue()
      assert said.startswith('error: ') and said.count('\\n') == 1, (name, said)
      assert 'jax' not in sys.modules, (name, arguments)
  """
  ended = subprocess.run(
    [sys.executable, '-W', 'ignore::RuntimeWarning', '-c', text],
    capture_output=True,
    text=True,
    cwd=FOLDER,
  )
  assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
  'name,main,define_flags,arguments',
  [
    ('train', launch.main, train.define_flags, ['--workdir=W']),
    (
      'evaluate',
      evaluation.main,
      evaluate.define_flags,
      ['--workdir=W', '--allow_config_change'],
    ),
    ('plan', command.main, plan_flags.define_flags, []),
    ('bench', decode_rates.main, bench.define_flags, []),
    (
      'import_weights',
      transfer.main,
      import_weights.define_flags,
      ['--out=W', 'FILE'],
    ),
  ],
)
@pytest.mark.parametrize(
  'overrides,words',
  [
    (
      ['model.depth=200', 'model.blocks=()'],
      'model.depth is 200; it must be 50 or 101',
    ),
    (['model.width=6'], 'model: width 6 is not divisible by beta_inv 4'),
    (
      ['model.num_temporal=(1,)'],
      r'model: num_temporal \(1,\) needs one entry',
    ),
    (['model.name=x3d'], "model.name is 'x3d'; it must be one of"),
  ],
)
def test_a_network_that_cannot_be_is_refused_before_data_is_opened(
  name, main, define_flags, arguments, overrides, words, capsys, monkeypatch
):
  monkeypatch.chdir(FOLDER)
  code = cli.run(
    main,
    define_flags,
    [
      name,
      f'--config={DIGITS}',
      '--config.data.dir=not/there',
      *(f'--config.{o}' for o in overrides),
      *arguments,
    ],
    arguments='FILE',
  )
  said = capsys.readouterr().err
  assert code == 2 and said.count('\n') == 1
  assert re.search(words, said), said
