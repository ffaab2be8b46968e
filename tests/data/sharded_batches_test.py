"""Batches on a mesh have the rows that they have on one device."""

import jax
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import sharded_batches
from distillspec_jax.distributed import mesh as mesh_lib
from tests import tiny


def test_fewer_examples_than_hosts_are_refused(tmp_path, monkeypatch):
  task = tiny.task(tmp_path)
  mesh = mesh_lib.make_mesh()
  monkeypatch.setattr(jax, 'process_count', lambda: 9)
  with pytest.raises(errors.UserError, match='6 examples for 9 processes'):
    sharded_batches.batches(mesh, task, 'validation', 8, seed=0)


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_the_rows_lie_as_in_one_batch(tmp_path, shape):
  task = tiny.task(tmp_path)
  mesh = mesh_lib.make_mesh(*shape)
  batch = next(sharded_batches.batches(mesh, task, 'train', 8, seed=0))
  alone = mesh_lib.make_mesh()
  expected = next(sharded_batches.batches(alone, task, 'train', 8, seed=0))
  jax.tree.map(np.testing.assert_array_equal, batch, expected)
