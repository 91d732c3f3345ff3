"""The tutorial shows the programs that the tests run."""

import ast
import pathlib
import re

from mgjax.grids import rows

ROOT = pathlib.Path(__file__).parent.parent
TUTORIAL = (ROOT / 'docs' / 'existing_training.md').read_text()
PROSE = re.sub(r'^```.*?^```$', '', TUTORIAL, flags=re.M | re.S)
PROGRAMS = {
  '': 'flax_linen.py',
  'Flax NNX': 'flax_nnx.py',
  'Equinox': 'equinox_net.py',
}


def code_of(name):
  """The lines of a program after its docstring, without indentation."""
  text = (ROOT / 'examples' / name).read_text()
  docstring = ast.parse(text).body[0]
  return stripped(text.splitlines()[docstring.end_lineno :])


def stripped(lines):
  return [line.strip() for line in lines if line.strip()]


def blocks():
  """For each program, the blocks that show it."""
  found = {name: [] for name in PROGRAMS.values()}
  heading = ''
  for title, block in re.findall(
    r'^## ([^\n]*)$|^```python\n(.*?)^```$', TUTORIAL, re.M | re.S
  ):
    heading = title or heading
    if block:
      name = PROGRAMS.get(heading, PROGRAMS[''])
      found[name].append(stripped(block.splitlines()))
  return found


def test_the_tutorial_shows_every_line_of_its_program():
  shown = blocks()['flax_linen.py']
  assert [line for block in shown for line in block] == code_of('flax_linen.py')


def test_what_the_tutorial_shows_of_the_others_is_in_them():
  for name in ('flax_nnx.py', 'equinox_net.py'):
    code = '\n'.join(code_of(name))
    shown = blocks()[name]
    assert shown
    for block in shown:
      assert '\n'.join(block) in code


def test_the_tutorial_names_what_mgjax_offers():
  import mgjax

  for name in re.findall(r'`mgjax\.(\w+)`|\bmgjax\.([a-zA-Z]\w*)', TUTORIAL):
    assert set(name) - {''} <= set(mgjax.__all__)


def test_the_links_of_the_tutorial_lead_somewhere():
  headings = {
    re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')
    for title in re.findall(r'^#+ (.*)$', PROSE, re.M)
  }
  for target in re.findall(r'\]\(([^)]+)\)', PROSE):
    if target.startswith('#'):
      assert target[1:] in headings
    else:
      assert (ROOT / 'docs' / target).exists()


SCHEDULES = (ROOT / 'docs' / 'schedules.md').read_text()


def test_every_shipped_schedule_is_on_the_page_with_its_command():
  shipped = {path.stem for path in ROOT.glob('configs/schedules/*.py')}
  assert set(re.findall(r'^\| `(\w+)` \| .*https:', SCHEDULES, re.M)) == shipped
  commands = re.findall(r'grid\.table=(\w+)', SCHEDULES)
  assert shipped <= set(commands)


def test_every_field_of_a_row_is_on_the_page():
  fields = re.findall(r'^\| (`\w+`[^|]*) \|', SCHEDULES, re.M)
  named = set(re.findall(r'`(\w+)`', ' '.join(fields)))
  assert named >= set(rows.FIELDS)
