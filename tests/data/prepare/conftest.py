"""A small data set in the form of Kinetics."""

import pytest

from tests.data import videos

# (class, YouTube id, split): '-' and '_' may start an id.
CLIPS = [
  ('air drumming', f'{"-_x"[i % 3]}train{i}', 'train') for i in range(5)
] + [('testifying', f'val{i}', 'validate') for i in range(3)]


GONE = 'testifying,gone,5,15,train'


@pytest.fixture
def kinetics(tmp_path):
  """Eight clips with their class folders, and a ninth that is not there."""
  lines = ['label,youtube_id,time_start,time_end,split', GONE]
  for number, (label, youtube_id, split) in enumerate(CLIPS):
    folder = tmp_path / 'videos' / split / label.replace(' ', '_')
    folder.mkdir(parents=True, exist_ok=True)
    encoded = videos.encode(seed=number)
    (folder / f'{youtube_id}_000001_000011.mp4').write_bytes(encoded)
    lines.append(f'{label},{youtube_id},1,11,{split}')
  (tmp_path / 'k.csv').write_text('\n'.join(lines))
  return tmp_path
