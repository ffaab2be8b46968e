"""A training state comes back as it was; folders are checked beforehand."""

import errno
import functools
import os
import random
import shutil
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


def test_a_full_disk_is_one_line(tmp_path):
  full = 'RESOURCE_EXHAUSTED: Error writing "x": No space left on device [os]'
  for error, text in (
      (ValueError(full), 'c cannot be written to: No space left on device. Fr'),
      (ValueError('PERMISSION_DENIED: y [source]'), 'to: PERMISSION_DENIED: y'),
      (OSError(errno.ENOSPC, 'No space left on device'), 'No space left'),
  ):
    with pytest.raises(errors.Failed, match=text) as raised:
      with store.writing(tmp_path / 'c'):
        raise error
    assert raised.value.__cause__ is error
  for error in (
      ValueError('a bug'),
      errors.UserError('UNKNOWN: no'),
      OSError(),
  ):
    with pytest.raises(type(error)) as raised:
      with store.writing(tmp_path / 'c'):
        raise error
    assert raised.value is error


# Damage.


@functools.cache
def like():
  return abstract(make_state())


def restore_last(folder):
  with store.Store(folder) as checkpoints:
    return checkpoints.restore_last(like(), lambda step, extra: None)


def assert_is(found, seed):
  """What was found is the checkpoint of that seed."""
  step, state, extra = found
  assert (step, extra) == (seed, {'best': seed})
  for name, array in make_state(seed).items():
    raw = [jax.random.key_data(x) if name == 'key' else x
           for x in (array, state[name])]  # fmt: skip
    np.testing.assert_array_equal(*raw)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Checkpoints of steps 1 and 2."""
  folder = tmp_path_factory.mktemp('written') / 'c'
  with store.Store(folder) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make_state(step), {'best': step})
  return folder


@pytest.fixture
def folder(tmp_path, written):
  shutil.copytree(written, tmp_path / 'c')
  return tmp_path / 'c'


def files_of(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file())


def test_no_byte_of_a_checkpoint_is_wrong_unnoticed(folder, capfd):
  assert_is(restore_last(folder), 2)
  rng = random.Random(0)
  fallen_back = 0
  for path in 2 * files_of(folder / '2'):
    raw = path.read_bytes()
    changed = bytearray(raw)
    changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    found = restore_last(folder)
    assert_is(found, found[0])
    if found[0] == 1:
      fallen_back += 1
      assert (
          '2 is damaged and is now called 2.damaged' in capfd.readouterr().err
      )
      (folder / '2.damaged').rename(folder / '2')
    path.write_bytes(raw)
  assert fallen_back >= 5  # others are of bytes that nothing depends on


@pytest.mark.parametrize('how', ['empty', 'no record', 'no array', 'cut'])
def test_a_damaged_checkpoint_is_set_aside_and_training_continues(
    folder, capfd, how
):
  if how == 'empty':
    (folder / '99').mkdir()
  elif how == 'no record':
    (folder / '2' / 'extra' / 'metadata').unlink()
  elif how == 'no array':
    shutil.rmtree(folder / '2' / 'state' / 'd')
  else:
    for path in files_of(folder / '2'):
      os.truncate(path, path.stat().st_size // 2)
  newest = 2 if how == 'empty' else 1
  damaged = 99 if how == 'empty' else 2
  (folder / f'{damaged}.damaged').mkdir()  # of an earlier time
  with store.Store(folder) as checkpoints:
    assert_is(
        checkpoints.restore_last(like(), lambda step, extra: None), newest
    )
    assert f'resumes from step {newest}' in capfd.readouterr().err
    # A step below the one that was set aside can be written.
    checkpoints.save(3, make_state(3), {'best': 3})
  assert_is(restore_last(folder), 3)
  assert (folder / f'{damaged}.damaged').is_dir()


def test_none_is_whole(folder):
  for step, text in ((1, '{}}'), (2, '5')):
    (folder / str(step) / 'extra' / 'metadata').write_text(text)
  before = files_of(folder)
  with pytest.raises(errors.UserError, match='No checkpoint in .*c is whole'):
    restore_last(folder)
  assert files_of(folder) == before


def test_there_is_none(tmp_path):
  assert restore_last(tmp_path / 'c') is None


def test_other_arrays_are_no_damage(folder):
  other = {**like(), 'more': like()['step']}
  with store.Store(folder) as checkpoints:
    with pytest.raises(
        errors.UserError, match='another model or optimizer: mo'
    ):
      checkpoints.restore_last(other, lambda step, extra: None)
  assert (folder / '2').is_dir()


def test_a_refusal_is_no_damage(folder):
  def refuse(step, extra):
    raise errors.UserError(f'refused {step} {extra}')

  with store.Store(folder) as checkpoints:
    with pytest.raises(errors.UserError, match="refused 2 {'best': 2}"):
      checkpoints.restore_last(like(), refuse)
  assert (folder / '2').is_dir()


def test_a_checkpoint_without_checksums_is_damaged(folder):
  (folder / '2' / 'extra' / 'metadata').write_text('{"best": 2}')
  assert_is(restore_last(folder), 1)
  assert (folder / '2.damaged').is_dir()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  folder = store.check_writable('~/new/folder')
  assert folder == tmp_path / 'new' / 'folder'
  assert (tmp_path / 'new' / 'folder').is_dir()
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.UserError, match='file/run'):
    store.check_writable(tmp_path / 'file' / 'run')


@pytest.mark.parametrize(
    'number, kind, reason',
    [
        (errno.EACCES, errors.UserError, 'Permission denied'),
        (errno.ENOSPC, errors.Failed, 'No space left on device'),
    ],
)
def test_why_a_folder_cannot_be_written_to_is_said(
    tmp_path, monkeypatch, number, kind, reason
):
  def refuse(**_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(tempfile, 'TemporaryFile', refuse)
  with pytest.raises(kind, match=f'run: {reason}'):
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
