"""Which compiler is asked, and what an answer is kept under."""

import dataclasses
import importlib.metadata
import pathlib
import re

import pytest

from distillspec_jax.core import errors
from distillspec_jax.planning import compiling
from tests.planning import tiny

ROOT = pathlib.Path(__file__).parents[2]


def test_the_pinned_compiler_is_the_one_that_jax_asks_for():
  (wanted,) = [
      found.group(1)
      for line in importlib.metadata.requires('jax')
      if (found := re.match(r'libtpu==([\d.]+)\.\*', line))
  ]
  pinned = (ROOT / 'requirements' / 'tpu.txt').read_text()
  assert re.search(r'^libtpu==([\d.]+)$', pinned, re.M)[1].startswith(wanted)


@pytest.fixture(name='libtpu')
def _libtpu(monkeypatch, tmp_path):
  """A file in the place of the compiler."""
  file = tmp_path / 'libtpu' / 'libtpu.so'
  file.parent.mkdir()
  file.touch()
  monkeypatch.setenv('TPU_LIBRARY_PATH', str(file))
  return file


def test_the_compiler_may_be_named(libtpu):
  assert compiling.library() == libtpu


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch, tmp_path):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  monkeypatch.setattr('sys.prefix', str(tmp_path))
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  with pytest.raises(errors.UserError, match=r'pip install .*tpu_compiler'):
    compiling.library()


def test_what_follows_from_other_things_has_another_key(libtpu):
  setting = tiny.setting()
  same = tiny.setting()
  key = compiling._key(setting, ('step',))
  assert compiling._key(same, ('step',)) == key
  other = dataclasses.replace(setting, fsdp=2, data=2)
  tokens = dataclasses.replace(
      setting, draft=dataclasses.replace(setting.draft, output_tokens=(0, 1))
  )
  keys = {
      key,
      compiling._key(other, ('step',)),
      compiling._key(tokens, ('step',)),
      compiling._key(setting, ('encoder',)),
  }
  (libtpu.parents[1] / 'libtpu-9.9.dist-info').mkdir()
  keys.add(compiling._key(setting, ('step',)))
  assert len(keys) == 5
