"""The training loop, end to end on a tiny data set."""

import json

import jax
import numpy as np
import pytest

from mgjax import checkpoint, metrics, train


@pytest.fixture(scope='module')
def finished(data_dir, tmp_path_factory):
  return None


def test_x(tiny_config, tmp_path):
  import time
  t=time.time()
  s=train.train(tiny_config, tmp_path)
  print(train.tell(s, tmp_path,'configs/x'))
  print(time.time()-t)
