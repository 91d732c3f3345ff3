"""What a card says of data, licence, accuracy and input, and where from."""

import json

import pytest
import yaml

import mgjax
from mgjax.exporting import origin
from mgjax.run import checkpoint
from tests.exporting import networks
from tests.exporting.test_export import run

LICENCE = 'CC-BY-NC 4.0 for the weights of VideoMAE: no commercial use'
EVAL = {
  'step': 3,
  'top1': 87.5,
  'mean_class': 80.0,
  'num_views': 30,
  'num_videos': 10,
  'num_scored': 9,
  'config_eval': {'split': 'test'},
  'overrides': {'eval.num_views': 10},
}
LINE = {
  **{'step': 3, 'epoch': 1.0, 'eval_top1': 62.5, 'eval_mean_class': 60.0},
  'eval_num_scored': 8,
}


@pytest.fixture
def folder(tmp_path):
  networks.write_run(tmp_path / 'run', networks.config_of('tam'))
  return tmp_path / 'run'


def card_of(folder, capsys, *argv):
  out = folder.parent / 'made'
  code, printed = run(
    capsys, f'--workdir={folder}', '--to=safetensors', f'--out={out}', *argv
  )
  assert code == 0, printed.err
  text = (out / 'README.md').read_text()
  _, header, body = text.split('---\n', 2)
  return yaml.safe_load(header), body


def test_a_card_says_what_the_settings_say(folder, capsys):
  header, body = card_of(folder, capsys)
  assert header == {
    'pipeline_tag': 'video-classification',
    'library_name': 'flax',
    'license': 'unknown',
    'tags': ['mgjax', 'video-classification', 'tam'],
  }
  for words in (
    f'mgjax {mgjax.__version__} from step 3',
    '| data set | moving_digits/motion; its licence: not known',
    '| started from | random weights |',
    '| accuracy | not known |',
    '| record | none: the run has not measured it |',
    'float32 `[batch, 4, 32, 32, 3]`',
    '4, 2 apart at 30 frames a second',
    'resized to 40 pixels, then the middle, 32 high and 32 wide',
    'red, green, blue',
    '`mean` [0.45, 0.45, 0.45] and `std` [0.225, 0.225, 0.225]',
    'logits, float32 `[batch, 5]`',
    'agree with those of the network',
  ):
    assert words in body
  settings = json.loads(
    (folder.parent / 'made' / 'mgjax_config.json').read_text()
  )
  assert settings == json.loads((folder / 'config.json').read_text())


def test_the_accuracy_is_that_of_an_evaluation_of_this_checkpoint(
  folder, capsys
):
  (folder / 'eval.json').write_text(json.dumps(EVAL))
  (folder / 'metrics.jsonl').write_text(json.dumps(LINE) + '\n')
  header, body = card_of(folder, capsys)
  (index,) = header['model-index']
  (result,) = index['results']
  assert result['dataset'] == {
    'name': 'moving_digits/motion',
    'type': 'moving_digits/motion',
  }
  assert result['metrics'] == [
    {'type': 'accuracy', 'name': 'top-1', 'value': 87.5},
    {'type': 'accuracy', 'name': 'mean class accuracy', 'value': 80.0},
  ]
  assert '| top-1 87.50 %, mean class accuracy 80.00 % |' in body
  assert (
    'eval.json of the run, step 3: views of each video: 30; 9 of 10 videos of '
    "the split test; other settings than the run's: eval.num_views=10" in body
  )


def test_other_checkpoints_have_the_accuracy_of_the_run(folder):
  (folder / 'eval.json').write_text(json.dumps(EVAL | {'step': 2}))
  assert origin.accuracy(folder, 3).metrics == {}
  lines = [LINE, LINE | {'step': 4}]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'metrics.jsonl').write_text(text)
  found = origin.accuracy(folder, 3)
  assert found.metrics == {'top1': 62.5, 'mean_class': 60.0}
  assert found.record == 'metrics.jsonl of the run, step 3: 8 videos'


def test_the_licence_is_that_of_the_weights_that_a_run_started_from(
  tmp_path, capsys
):
  imported = {'imported_from': 'file.pth', 'licence': LICENCE}
  networks.write_run(
    tmp_path / 'imported', networks.config_of('tam'), step=0, **imported
  )
  for name, start in (('first', 'imported'), ('second', 'first')):
    config = networks.config_of('tam')
    config.init_from = str(tmp_path / start)
    networks.write_run(tmp_path / name, config)
  header, body = card_of(tmp_path / 'second', capsys)
  assert header['license'] == 'other' and header['license_name'] == LICENCE
  assert '| started from | `file.pth` |' in body
  assert f'| licence of those weights | {LICENCE} |' in body
  path = checkpoint.find(tmp_path / 'first', '')
  assert origin.source(path, str(tmp_path / 'no')).lost == str(tmp_path / 'no')
