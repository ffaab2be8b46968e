"""The cache of compiled programs, which all tests share, does no harm."""

import os
import threading

import jax
from jax._src import compilation_cache
from jax._src import lru_cache
import numpy as np
import pytest

X = np.arange(9.0, dtype=np.float32).reshape(3, 3)


@pytest.fixture(name='folder')
def _folder(tmp_path):
  """A cache of the test's own."""
  before = jax.config.jax_compilation_cache_dir
  compilation_cache.reset_cache()
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  yield tmp_path
  compilation_cache.reset_cache()
  jax.config.update('jax_compilation_cache_dir', before)


def run():
  """The result of a program that is not in memory."""
  return np.asarray(jax.jit(lambda x: jax.numpy.sin(x) @ x)(X))


def test_a_program_is_compiled_once(folder):
  expected = run()
  [entry] = folder.iterdir()
  written = entry.stat()
  np.testing.assert_array_equal(run(), expected)
  assert list(folder.iterdir()) == [entry]
  assert entry.stat().st_ino == written.st_ino  # compiling replaces it


@pytest.mark.parametrize('size', [0, 1, 1000, -1])
def test_an_entry_cut_short_is_replaced(folder, size):
  expected = run()
  [entry] = folder.iterdir()
  entry.write_bytes(entry.read_bytes()[:size])
  with pytest.raises(Exception, match='truncated|incomplete|zstd'):
    compilation_cache.decompress_executable(entry.read_bytes())
  np.testing.assert_array_equal(run(), expected)
  assert compilation_cache.decompress_executable(entry.read_bytes())


def test_an_entry_that_cannot_be_written_leaves_nothing(folder, monkeypatch):
  def fail(*_):
    raise OSError('no space left on device')

  monkeypatch.setattr(os, 'replace', fail)
  run()
  assert not list(folder.iterdir())


def test_no_entry_is_seen_half_written(tmp_path):
  cache = lru_cache.LRUCache(str(tmp_path), max_size=-1)
  value = bytes(2**20)

  def write():
    for _ in range(50):
      cache.put('key', value)

  writers = [threading.Thread(target=write) for _ in range(2)]
  for writer in writers:
    writer.start()
  sizes = set()
  while any(writer.is_alive() for writer in writers):
    sizes.add(len(cache.get('key') or value))
  assert sizes == {len(value)}
