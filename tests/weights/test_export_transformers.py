"""Runs of video transformers, as folders that transformers loads."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mgjax.config import saved
from mgjax.weights import safetensors_files
from tests.golden import rule
from tests.weights import test_import_other_transformers as other
from tests.weights import test_import_transformers as importing

# Loads a folder with transformers and compares logits of clips.
_COMPARE = """
import json, sys
import numpy as np, torch, transformers
folder, clips = sys.argv[1:]
kind = json.load(open(folder + '/config.json'))['architectures'][0]
model, info = getattr(transformers, kind).from_pretrained(
  folder, output_loading_info=True)
arrays = np.load(clips)
with torch.no_grad():
  video = torch.tensor(arrays['video']).permute(0, 1, 4, 2, 3)
  logits = model.eval()(video).logits.numpy()
deviation = np.abs(logits - arrays['logits']).max() / arrays['logits'].std()
print(json.dumps({
  'deviation': float(deviation),
  'missing': sorted(info['missing_keys']),
  'unexpected': sorted(info['unexpected_keys']),
  'label': model.config.id2label[1],
}))
"""


def imported(network, name, tmp_path, capsys):
  """The golden, a case of it, and the folder of an import of its weights."""
  golden = importing.load(network)
  case = importing.case_of(golden, name)
  of_others = network.startswith(('vivit', 'timesformer'))
  write = (other if of_others else importing).write_folder
  folder = write(tmp_path / 'model', golden, case)
  out = tmp_path / 'run'
  code, printed = importing.run(capsys, folder, f'--out={out}')
  assert code == 0, printed.err
  return golden, case, out


CASES = [
  ('videomae_hf_w64_p16', '2x4x32x48'),
  ('videomae_hf_w48_firsttoken', '2x4x32x32'),
  ('vjepa2_hf_w48_p8_pool3', '2x8x48x48'),
  ('vivit_w64_p8_nonsquare', '2x4x32x24'),
  ('timesformer_w64_p8', '2x4x32x32'),
]


def names_on_disk(golden):
  """The weights under the names that save_pretrained writes."""
  if not golden['id'].startswith(('vivit', 'timesformer')):
    return importing.saved_names(golden)
  found = {}
  for name, array in rule.state(golden).items():
    for memory, disk in other.ON_DISK:
      name = name.replace(memory, disk)
    found[name] = array
  return found


@pytest.mark.parametrize('network,name', CASES)
def test_an_export_has_the_names_and_numbers_of_save_pretrained(
  network, name, tmp_path, capsys
):
  golden, case, run = imported(network, name, tmp_path, capsys)
  folder = tmp_path / 'back'
  code, printed = importing.run(
    capsys, run, '--to=huggingface', f'--out={folder}'
  )
  assert code == 0, printed.err
  found = safetensors_files.load(folder / 'model.safetensors')
  assert found.pop(safetensors_files.METADATA)['format'] == 'pt'
  # The predictor is of the pre-training, and transformers makes a new one.
  expected = {
    n: a for n, a in names_on_disk(golden).items() if 'predictor' not in n
  }
  assert found.keys() == expected.keys()
  for key, array in expected.items():
    np.testing.assert_array_equal(found[key].numpy(), array)
  config = json.loads((folder / 'config.json').read_text())
  wanted = json.loads((tmp_path / 'model' / 'config.json').read_text())
  assert {k: config.get(k) for k in wanted} == wanted
  # It can be imported again, and is the same network.
  again = tmp_path / 'again'
  code, printed = importing.run(capsys, folder, f'--out={again}')
  assert code == 0, printed.err
  assert 'logits agree with those of' in printed.out
  assert saved.read_saved(again).to_dict() == saved.read_saved(run).to_dict()
  code, printed = importing.run(
    capsys, run, '--to=huggingface', f'--out={folder}'
  )
  assert code == 2 and 'exists already' in printed.err


def test_what_transformers_does_not_have_is_refused_or_measured(
  tmp_path, capsys
):
  _, _, run = imported(*CASES[2], tmp_path, capsys)
  path = run / 'config.json'
  config = json.loads(path.read_text())
  for option, value, words in (
    ('probe_heads', 1, 'model.probe_heads is 1'),
    ('qkv_bias', 'qv', "model.qkv_bias is 'qv'"),
    ('positions', 'learned', "model.pool is 'probe'"),
    ('head_norm_eps', 1e-4, None),
  ):
    changed = config | {'model': config['model'] | {option: value}}
    path.write_text(json.dumps(changed))
    code, printed = importing.run(
      capsys, run, '--to=huggingface', f'--out={tmp_path / option}'
    )
    assert code == (2 if words else 0), printed.err
    assert (words or 'model.head_norm_eps=1e-06, the run 0.0001') in (
      printed.err if words else printed.out
    )
    assert (tmp_path / option).exists() == (not words)


@pytest.fixture(scope='module')
def python(tmp_path_factory):
  """A Python with transformers: of TRANSFORMERS_PYTHON, or made here."""
  if given := os.environ.get('TRANSFORMERS_PYTHON'):
    return pathlib.Path(given)
  folder = tmp_path_factory.mktemp('transformers')
  subprocess.run([sys.executable, '-m', 'venv', folder], check=True)
  pip = [folder / 'bin' / 'python', '-m', 'pip', 'install', '--quiet']
  cpu = ['--extra-index-url', 'https://download.pytorch.org/whl/cpu']
  made = subprocess.run(
    [*pip, *cpu, 'torch', 'transformers>=5'], capture_output=True, text=True
  )
  if made.returncode:
    pytest.skip(f'transformers cannot be installed: {made.stderr[-300:]}')
  return folder / 'bin' / 'python'


@pytest.mark.slow
@pytest.mark.parametrize('network,name', CASES)
def test_transformers_loads_an_export_to_the_same_logits(
  network, name, tmp_path, capsys, python
):
  golden, case, run = imported(network, name, tmp_path, capsys)
  folder, clips = tmp_path / 'back', tmp_path / 'clips.npz'
  code, printed = importing.run(
    capsys, run, '--to=huggingface', f'--out={folder}'
  )
  assert code == 0, printed.err
  stored = case['outputs']['logits']
  np.savez(
    clips,
    video=rule.video(case, golden['rule']['salt']),
    logits=np.reshape(stored['data'], stored['shape']),
  )
  result = subprocess.run(
    [python, '-c', _COMPARE, folder, clips],
    capture_output=True,
    text=True,
    env=os.environ | {'HF_HUB_OFFLINE': '1'},
  )
  assert result.returncode == 0, result.stderr[-2000:]
  found = json.loads(result.stdout.splitlines()[-1])
  assert found['deviation'] < 2e-5
  assert not found['unexpected']
  assert all('predictor' in name for name in found['missing'])
