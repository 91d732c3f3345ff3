"""The publishers' annotation files, in small, are read for what they say."""

import collections
import json

import pytest

from mgjax.data.prepare import annotations, publishers
from mgjax.data.prepare.annotations import Action
from mgjax.errors import ConfigError


def write(folder, **files):
  """Writes files, whose names have __ for a dot and _0 for a hyphen."""
  for name, content in files.items():
    if not isinstance(content, str | bytes):
      content = json.dumps(content)
    if isinstance(content, str):
      content = content.encode()
    path = folder / name.replace('__', '.').replace('_0', '-')
    path.write_bytes(content)
  return folder


def read(dataset, *paths, fold=1):
  return publishers.read(dataset, paths, fold=fold)


def rows(result):
  return [(v.id, v.split, v.label) for v in result.videos]


KINETICS = """label,youtube_id,time_start,time_end,split
testifying,---QUuC4vJs,84,94,train
air drumming,-0BC0k6wIVk,2,12,train
"eating, drinking",_A1,120,130,validate
,XtestX,0,10,test
"""


def test_kinetics_csv(tmp_path):
  write(tmp_path, train__csv=KINETICS)
  result = read('kinetics400', tmp_path / 'train.csv')
  # Alphabetical, as every Kinetics model has its labels.
  assert result.class_names == (
    'air drumming',
    'eating, drinking',
    'testifying',
  )
  assert rows(result) == [
    ('---QUuC4vJs_000084_000094', 'train', 'testifying'),
    ('-0BC0k6wIVk_000002_000012', 'train', 'air drumming'),
    ('_A1_000120_000130', 'validation', 'eating, drinking'),
  ]
  assert result.num_unlabelled == 1
  assert result.videos[0].names == ('---QUuC4vJs_000084_000094', '---QUuC4vJs')


def test_kinetics_json_says_the_same_as_csv(tmp_path):
  entry = lambda label, start, split: {
    'annotations': {'label': label, 'segment': [start, start + 10.0]},
    'subset': split,
  }
  content = {
    '---QUuC4vJs': entry('testifying', 84.0, 'train'),
    '-0BC0k6wIVk': entry('air drumming', 2.0, 'train'),
    '_A1': entry('eating, drinking', 120.0, 'validate'),
    'XtestX': {'subset': 'test'},
  }
  write(tmp_path, all__json=content, train__csv=KINETICS)
  assert read('kinetics600', tmp_path / 'all.json') == read(
    'kinetics600', tmp_path / 'train.csv'
  )


def test_split_of_kinetics_may_stand_in_the_name(tmp_path):
  text = 'label,youtube_id,time_start,time_end\ndancing,abc,1,11\n'
  write(tmp_path, kinetics_0400_val__csv=text)
  assert rows(read('kinetics400', tmp_path)) == [
    ('abc_000001_000011', 'validation', 'dancing')
  ]


def test_something_v2(tmp_path):
  labels = {'Putting something on something': '1', 'Holding something': '0'}
  entry = {'id': '78687', 'label': 'holding potato'}
  write(
    tmp_path,
    labels__json=labels,
    train__json=[{**entry, 'template': 'Holding [something]'}],
    validation__json=[
      {'id': '2', 'template': 'Putting [something] on [something]'}
    ],
    test__json=[{'id': '3'}],
  )
  result = read('ssv2', tmp_path)
  assert result.class_names == (
    'Holding something',
    'Putting something on something',
  )
  assert sorted(rows(result)) == [
    ('2', 'validation', 'Putting something on something'),
    ('78687', 'train', 'Holding something'),
  ]
  assert result.num_unlabelled == 1
  # The list of classes is found beside a list of videos.
  assert len(read('ssv2', tmp_path / 'train.json').videos) == 1


def write_something_v1(folder):
  """Writes labels; returns the names of the videos that have one."""
  write(
    folder,
    something_0something_0v1_0labels__csv='Holding something\n"Opening" x\n',
    something_0something_0v1_0train__csv='100218;Holding something\n',
    something_0something_0v1_0validation__csv='24413;"Opening" x\n',
    something_0something_0v1_0test__csv='1\n2\n',
  )
  return ['100218', '24413']


def test_something_v1(tmp_path):
  write_something_v1(tmp_path)
  result = read('ssv1', tmp_path)
  assert result.class_names == ('Holding something', '"Opening" x')
  assert rows(result) == [
    ('100218', 'train', 'Holding something'),
    ('24413', 'validation', '"Opening" x'),
  ]
  assert result.num_unlabelled == 2


CHARADES = (
  'id,subject,scene,quality,relevance,verified,script,objects,descriptions,'
  'actions,length\n'
)


def charades(folder):
  train = '46GP8,HR43,Kitchen,6,7,Yes,"A person, cooking.",food,"x;y",'
  return write(
    folder,
    Charades_v1_classes__txt='c000 Holding some clothes\nc001 Taking a bag\n',
    Charades_v1_objectclasses__txt='o000 None\n',
    Charades_v1_train__csv=f'{CHARADES}{train}'
    'c001 11.90 21.20;c000 0.00 12.60;c001 0 1,24.83\n'
    'N11GT,0KZ7,Stairs,6,7,Yes,s,o,d,,18.33\n',
    Charades_v1_test__csv=f'{CHARADES}T1,a,b,6,7,Yes,s,o,d,c000 1 2.5,9\n',
  )


def test_charades_has_actions_and_its_test_is_the_validation(tmp_path):
  result = read('charades', charades(tmp_path))
  assert result.has_actions
  assert result.class_names == ('Holding some clothes', 'Taking a bag')
  test, first, second = sorted(result.videos, key=lambda v: v.id != 'T1')
  assert (first.id, first.split, first.label) == ('46GP8', 'train', None)
  assert first.actions == (
    Action('Taking a bag', 11.9, 21.2),
    Action('Holding some clothes', 0.0, 12.6),
    Action('Taking a bag', 0.0, 1.0),
  )
  assert (second.id, second.actions) == ('N11GT', ())
  assert test.split == 'validation'


def test_moments_in_time(tmp_path):
  write(
    tmp_path,
    moments_categories__txt='clapping,1\nadult+female+singing,0\n',
    trainingSet__csv='clapping/yt-5of6.x_2.mp4,clapping,4,0\n',
    validationSet__csv='adult+female+singing/a_1.mp4,adult+female+singing,3,0\n',
  )
  result = read('mit', tmp_path)
  assert result.class_names == ('adult+female+singing', 'clapping')
  assert rows(result) == [
    ('clapping/yt-5of6.x_2', 'train', 'clapping'),
    ('adult+female+singing/a_1', 'validation', 'adult+female+singing'),
  ]


def test_ucf101_takes_one_of_three_folds(tmp_path):
  write(
    tmp_path,
    classInd__txt='1 ApplyEyeMakeup\n2 Archery\n10 Biking\n',
    trainlist01__txt='Archery/v_Archery_g08_c01.avi 2\n',
    testlist01__txt='ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n',
    trainlist02__txt='Biking/v_Biking_g01_c01.avi 10\n',
  )
  result = read('ucf101', tmp_path)
  assert result.class_names == ('ApplyEyeMakeup', 'Archery', 'Biking')
  assert sorted(rows(result)) == [
    ('ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01', 'validation', 'ApplyEyeMakeup'),
    ('Archery/v_Archery_g08_c01', 'train', 'Archery'),
  ]
  assert [v.label for v in read('ucf101', tmp_path, fold=2).videos] == [
    'Biking'
  ]


def test_hmdb51_leaves_out_what_the_fold_does(tmp_path):
  write(
    tmp_path,
    brush_hair_test_split1__txt='April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n'
    'x_brush_hair.avi 2 \nunused.avi 0 \n',
    wave_test_split1__txt='w.avi 1 \n',
    wave_test_split2__txt='w.avi 2 \n',
  )
  result = read('hmdb51', tmp_path)
  assert result.class_names == ('brush_hair', 'wave')
  assert rows(result) == [
    ('brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0', 'train', 'brush_hair'),
    ('brush_hair/x_brush_hair', 'validation', 'brush_hair'),
    ('wave/w', 'train', 'wave'),
  ]


def test_csv_with_paths_and_labels(tmp_path):
  write(tmp_path, val__csv='a/x.mp4,run\nb/y.webm,jump\n')
  write(tmp_path, all__csv='path,label,split\na/x.mp4,run,train\n')
  result = annotations.from_csv(
    [tmp_path / 'val.csv', tmp_path / 'all.csv'], validation_fraction=0.1
  )
  assert result.class_names == ('jump', 'run')
  assert rows(result) == [
    ('a/x', 'validation', 'run'),
    ('b/y', 'validation', 'jump'),
    ('a/x', 'train', 'run'),
  ]


@pytest.mark.parametrize(
  'header', ['path,label', 'video,label', 'filename,class', 'Path, Label']
)
def test_a_header_is_no_video(tmp_path, header):
  write(tmp_path, my__csv=f'{header}\na.mp4,x\nvideo,y\n')
  found = annotations.from_csv([tmp_path / 'my.csv'], validation_fraction=0.0)
  assert [(v.id, v.label) for v in found.videos] == [('a', 'x'), ('video', 'y')]


@pytest.mark.parametrize(
  'content,message',
  [
    ('label,path\nx,a.mp4\n', "line 1: 'label,path'; the columns are path,lab"),
    ('a.mp4,x\n\nb.mp4\n', "my.csv, line 3: 'b.mp4'; the form is path,label"),
    ('a.mp4,\n', "my.csv, line 1: 'a.mp4,'; the form is path,label"),
    ('a.mp4,x,dev\n', "my.csv, line 1: the split is 'dev'; it must be train"),
    ('a.mp4,x\nCafé.mp4,x\n'.encode('latin-1'), 'my.csv, line 2.*as UTF-8'),
    ('a.mp4,x\n'.encode('utf-16'), 'my.csv, line 1: byte 0xff.*as UTF-8'),
    (b'a.mp4,x\nb\0.mp4,x\n', 'my.csv, line 2: byte 0x00.*as UTF-8'),
    ('a.mp4,x\n' + 'b' * 200_000, 'my.csv, line 2: field larger.*short'),
  ],
)
def test_wrong_rows_are_named(tmp_path, content, message):
  write(tmp_path, my__csv=content)
  with pytest.raises(ConfigError, match=message) as error:
    annotations.from_csv([tmp_path / 'my.csv'], validation_fraction=0.1)
  assert '\n' not in str(error.value)


def test_folders_name_classes_and_may_name_splits():
  result = annotations.from_folders(
    ['train/run/x', 'val/jump/a/y'], validation_fraction=0.5
  )
  assert rows(result) == [
    ('train/run/x', 'train', 'run'),
    ('val/jump/a/y', 'validation', 'jump'),
  ]


def validation_of(paths, fraction):
  found = annotations.from_folders(paths, validation_fraction=fraction)
  return {v.id for v in found.videos if v.split == 'validation'}


@pytest.mark.parametrize(
  'counts,fraction,expected',
  [
    ((100, 10, 3, 2, 1), 0.1, (10, 1, 1, 1, 0)),
    ((90, 6), 0.2, (18, 1)),
    ((4, 2), 0.9, (3, 1)),  # Each class keeps a training video.
    ((50, 2), 0.0, (0, 0)),
  ],
)
def test_every_class_has_its_share_of_the_drawn_split(
  counts, fraction, expected
):
  paths = [f'class{k}/{i}' for k, n in enumerate(counts) for i in range(n)]
  drawn = validation_of(paths, fraction)
  found = [
    sum(name.startswith(f'class{k}/') for name in drawn)
    for k in range(len(counts))
  ]
  assert tuple(found) == expected


def test_a_new_video_moves_one_other_at_most():
  paths = [f'run/{i}' for i in range(40)]
  before = validation_of(paths, 0.2)
  assert before == validation_of(paths[::-1], 0.2)
  for new in range(40, 60):
    after = validation_of([*paths, f'run/{new}'], 0.2)
    assert len((before ^ after) - {f'run/{new}'}) <= 1


def test_rows_without_a_split_get_one_class_by_class(tmp_path):
  lines = [f'{k}{i}.mp4,{k}' for k in 'ab' for i in range(3)]
  write(tmp_path, my__csv='\n'.join([*lines, 'c.mp4,b,test']))
  found = annotations.from_csv(
    [tmp_path / 'my.csv'], validation_fraction=0.1
  ).videos
  counts = collections.Counter((v.label, v.split) for v in found)
  assert counts == {
    ('a', 'train'): 2,
    ('a', 'validation'): 1,
    ('b', 'train'): 2,
    ('b', 'validation'): 1,
    ('b', 'test'): 1,
  }


def test_chosen_classes_are_numbered_in_the_given_order(tmp_path):
  full = read('kinetics400', write(tmp_path, train__csv=KINETICS))
  few = annotations.choose_classes(full, ['testifying', 'air drumming'])
  assert few.class_names == ('testifying', 'air drumming')
  assert {v.label for v in few.videos} == set(few.class_names)
  with pytest.raises(ConfigError, match="did you mean 'testifying'"):
    annotations.choose_classes(full, ['testifing'])


def test_sampled_classes_are_nested_and_keep_the_order(tmp_path):
  names = [f'class {i:03d}' for i in range(60)]
  full = annotations.from_folders(
    [f'{n}/x' for n in names], validation_fraction=0.0
  )
  twenty = annotations.sample_classes(full, 20)
  assert len(twenty) == 20 and twenty == sorted(twenty)
  assert set(annotations.sample_classes(full, 10)) < set(twenty)
  assert twenty != names[:20]
  with pytest.raises(ConfigError, match='60 classes'):
    annotations.sample_classes(full, 61)


def test_charades_classes_drop_actions_of_others(tmp_path):
  full = read('charades', charades(tmp_path))
  few = annotations.choose_classes(full, ['Holding some clothes'])
  assert {v.id: len(v.actions) for v in few.videos} == {'46GP8': 1, 'T1': 1}


@pytest.mark.parametrize(
  'dataset,files,message',
  [
    ('kinetics400', {'x__csv': 'a,b\n1,2\n'}, 'columns are label,youtube_id'),
    ('kinetics400', {'x__txt': ''}, 'is a list of videos'),
    (
      'kinetics400',
      {'a__csv': KINETICS.replace('validate', 'dev')},
      "the split is 'dev'",
    ),
    ('ssv2', {'train__json': []}, 'no list of classes'),
    ('ssv2', {'labels__json': '{"a"', 'train__json': []}, 'is not JSON'),
    ('ssv2', {'labels__json': {'a': '0'}, 'train__json': []}, 'no labelled'),
    (
      'ssv2',
      {'labels__json': {'a': '0'}, 'val__json': [{'id': 1, 'template': 'b'}]},
      "val.json, entry 1: the label 'b' is not in .*labels.json",
    ),
    (
      'charades',
      {
        'Charades_v1_classes__txt': 'c000 a\n',
        'Charades_v1_train__csv': 'id,actions\nx,c009 1 2\n',
      },
      'train.csv, line 2: .*c009',
    ),
    (
      'charades',
      {
        'Charades_v1_classes__txt': 'c000 a\nc001\n',
        'Charades_v1_train__csv': 'id,actions\n',
      },
      "classes.txt, line 2: 'c001'; the form is 'c000 class'",
    ),
    (
      'hmdb51',
      {'a_test_split1__txt': 'y.avi 1\nx.avi 7\n'},
      'split1.txt, line 2: .*does not end with 0, 1',
    ),
    (
      'kinetics400',
      {'a__json': {'v1': {'annotations': {'label': 'a', 'segment': [1]}}}},
      "a.json, entry 'v1': not enough values.*the form is",
    ),
    (
      'kinetics400',
      {'a__json': {'v1': ['a', 1, 2]}},
      "a.json, entry 'v1': 'list' object .*the form is",
    ),
    (
      'kinetics400',
      {'a__json': {'v1': {'annotations': {'label': [1], 'segment': [1, 2]}}}},
      "a.json, entry 'v1': .*is not a text.*the form is",
    ),
    (
      'kinetics400',
      {'a__csv': KINETICS.replace('84', 'inf')},
      'a.csv, line 2: inf to 94 is no span of time.*the columns are',
    ),
    (
      'kinetics400',
      {'a__csv': KINETICS.replace('drumming', 'café').encode('latin-1')},
      'a.csv, line 3: byte 0xe9 is no text; save the file as UTF-8',
    ),
    (
      'ssv2',
      {'labels__json': {'a': 'x'}, 'train__json': []},
      "labels.json, entry 'a': 'a, x'; the index must be a whole number",
    ),
    (
      'ssv2',
      {'labels__json': {'a': '0'}, 'train__json': [{'id': 1}, 'b']},
      'train.json, entry 2: .*the form is',
    ),
    (
      'ssv1',
      {'x_0labels__csv': 'a\n', 'x_0train__csv': '1;a\n2;b\n'},
      "train.csv, line 2: the label 'b' is not in .*labels.csv",
    ),
    (
      'mit',
      {'moments_categories__txt': 'a,0\nb\n', 'trainingSet__csv': 'a/1,a\n'},
      "categories.txt, line 2: 'b'; the form is class,index",
    ),
    (
      'ucf101',
      {'classInd__txt': '1 A\nB\n', 'trainlist01__txt': 'A/x.avi 1\n'},
      "classInd.txt, line 2: 'B'; the form is '1 class'",
    ),
  ],
)
def test_wrong_files_are_named(tmp_path, dataset, files, message):
  with pytest.raises(ConfigError, match=message) as error:
    read(dataset, write(tmp_path, **files))
  assert '\n' not in str(error.value)
