"""A training state comes back as it was; folders are checked beforehand."""

import errno
import os
import tempfile

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from distillspec_jax.checkpoints import store
from distillspec_jax.core import errors
from distillspec_jax.distributed import hosts
from distillspec_jax.distributed import mesh as mesh_lib


def make_state(seed=0):
  mesh = mesh_lib.make_mesh()
  key = jax.random.key(seed)
  return {
      'step': jax.device_put(jnp.int32(3), mesh_lib.replicated(mesh)),
      'params': jax.device_put(
          jax.random.normal(key, (8, 4)), mesh_lib.rows(mesh)
      ),
      'key': jax.device_put(key, mesh_lib.replicated(mesh)),
  }


def abstract(state):
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      state,
  )


def test_a_state_comes_back_to_the_bit(tmp_path):
  state = make_state()
  with store.Store(tmp_path / 'c') as checkpoints:
    assert checkpoints.latest_step() is None
    checkpoints.save(3, state, {'best': 1.5})
  with store.Store(tmp_path / 'c') as checkpoints:
    assert checkpoints.latest_step() == 3
    restored, extra = checkpoints.restore(3, abstract(state))
  assert extra == {'best': 1.5}
  np.testing.assert_array_equal(restored['params'], state['params'])
  assert restored['params'].sharding == state['params'].sharding
  # The key is a key again and draws the same.
  np.testing.assert_array_equal(
      jax.random.normal(restored['key'], (3,)),
      jax.random.normal(state['key'], (3,)),
  )


def test_a_state_is_restored_onto_another_layout(tmp_path):
  state = make_state()
  with store.Store(tmp_path / 'c') as checkpoints:
    checkpoints.save(1, state, {})
    checkpoints.wait()
    like = abstract(state)
    other = NamedSharding(mesh_lib.make_mesh(), PartitionSpec(None, None))
    like['params'] = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=other)
    restored, _ = checkpoints.restore(1, like)
  assert restored['params'].sharding == other
  np.testing.assert_array_equal(restored['params'], state['params'])


def test_the_last_ones_are_kept(tmp_path):
  with store.Store(tmp_path / 'c', keep=2) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, make_state(step), {})
    checkpoints.save(3, make_state(9), {})  # is there already
  steps = sorted(
      int(path.name) for path in (tmp_path / 'c').iterdir() if path.is_dir()
  )
  assert steps == [2, 3]
  with store.Store(tmp_path / 'c') as checkpoints:
    restored, _ = checkpoints.restore(3, abstract(make_state()))
  np.testing.assert_array_equal(restored['params'], make_state(3)['params'])


def test_what_was_not_written_to_its_end_does_not_exist(tmp_path):
  with store.Store(tmp_path / 'c') as checkpoints:
    checkpoints.save(1, make_state(), {})
  (tmp_path / 'c' / '2.orbax-checkpoint-tmp-1').mkdir()
  with store.Store(tmp_path / 'c') as checkpoints:
    assert checkpoints.latest_step() == 1


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  folder = store.check_writable('~/new/folder')
  assert folder == tmp_path / 'new' / 'folder'
  assert (tmp_path / 'new' / 'folder').is_dir()
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='file/run'):
    store.check_writable(tmp_path / 'file' / 'run')


@pytest.mark.parametrize(
    'number, reason',
    [
        (errno.EACCES, 'Permission denied'),
        (errno.ENOSPC, 'No space left on device'),
    ],
)
def test_why_a_folder_cannot_be_written_to_is_said(
    tmp_path, monkeypatch, number, reason
):
  def refuse(**_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(tempfile, 'TemporaryFile', refuse)
  with pytest.raises(errors.UserError, match=f'run: {reason}'):
    store.check_writable(tmp_path / 'run')


@pytest.mark.parametrize('is_first', [True, False])
def test_a_folder_that_not_all_hosts_see_is_refused(
    tmp_path, monkeypatch, is_first
):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(hosts, 'is_first', lambda: is_first)
  monkeypatch.setattr(hosts, 'wait_for_all', lambda name: None)
  monkeypatch.setattr(
      store.multihost_utils, 'broadcast_one_to_all', lambda number: number
  )
  if is_first:
    store.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())
  else:  # process 0 has left its mark elsewhere
    with pytest.raises(errors.UserError, match='is not the folder that proc'):
      store.check_shared(tmp_path)
