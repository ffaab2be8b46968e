"""Which compiler is asked, and what an answer is kept under."""

import dataclasses
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

from distillspec_jax.core import errors
from distillspec_jax.planning import compiler
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import verification
from distillspec_jax.training import method
from tests.planning import tiny

ROOT = pathlib.Path(__file__).parents[2]


def test_the_pinned_compiler_is_the_one_that_jax_asks_for():
  (wanted,) = [
      match.group(1)
      for line in importlib.metadata.requires('jax')
      if (match := re.match(r'libtpu==([\d.]+)\.\*', line))
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
  assert compiler.library() == libtpu


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch, tmp_path):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  monkeypatch.setattr('sys.prefix', str(tmp_path))
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  with pytest.raises(errors.UserError, match=r'pip install .*tpu_compiler'):
    compiler.library()


def with_drafting(**changes):
  return tiny.config({'decoding': tiny.DECODING.replace(**changes)})


def test_what_follows_from_other_things_has_another_key(libtpu):
  config = tiny.config()
  key = compiler._key(config, ('step',))
  assert compiler._key(tiny.config(), ('step',)) == key
  # A model is printed with the first of its tokens only.
  tokens = [
      dataclasses.replace(tiny.MODEL, trimmed_vocabulary=(*range(99), last))
      for last in (100, 101)
  ]
  keys = [
      key,
      compiler._key(config, ('encoder',)),
      *(
          compiler._key(each, ('step',))
          for each in (
              tiny.config(sizes=(2, 2, 1)),
              tiny.config(batch_size=16),
              tiny.config({'draft': tokens[0]}),
              tiny.config({'draft': tokens[1]}),
              with_drafting(paths=2),
              # These have the same fields, of other classes.
              with_drafting(verifier=verification.Block()),
              with_drafting(adaptive=adaptive_length.Confidence(0.5)),
              with_drafting(adaptive=adaptive_length.Entropy(0.5)),
          )
      ),
  ]
  (libtpu.parents[1] / 'libtpu-9.9.dist-info').mkdir()
  keys.append(compiler._key(config, ('step',)))
  assert len(set(keys)) == len(keys)


DIVERGENCE = 'def divergence(p, q):\n  return {} * (p - q).sum(-1)\n'


@pytest.mark.usefixtures('libtpu')
def test_the_users_own_code_is_part_of_the_key(monkeypatch, tmp_path):
  keys = set()
  folder = tmp_path / 'code'
  folder.mkdir()
  monkeypatch.syspath_prepend(folder)
  for factor in (1.0, 22.0):
    (folder / 'plan_divergence.py').write_text(DIVERGENCE.format(factor))
    sys.modules.pop('plan_divergence', None)
    module = importlib.import_module('plan_divergence')
    own = method.Method(divergence=module.divergence)
    keys.add(compiler._key(tiny.config(method=own), ('step',)))
  assert len(keys) == 2


@pytest.mark.usefixtures('libtpu')
def test_code_that_cannot_be_sent_is_refused():
  own = method.Method(divergence=lambda p, q: (p - q).sum(-1))
  with pytest.raises(errors.UserError, match='top level of a module'):
    compiler._key(tiny.config(method=own), ('step',))


def test_all_modules_that_are_compiled_with_are_in_the_key():
  imported = subprocess.run(
      [
          sys.executable,
          '-c',
          'import sys, distillspec_jax.planning.compiler_process\n'
          'for name, module in sys.modules.items():\n'
          '  if name.startswith("distillspec_jax"): print(module.__file__)',
      ],
      capture_output=True,
      check=True,
      text=True,
  ).stdout.split()
  in_key = set(map(str, compiler.sources()))
  assert len(imported) > 30
  assert not set(imported) - in_key
