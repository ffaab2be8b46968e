"""A configuration as in a process of its own, and a command for tests."""

import importlib
import json
import sys
import types

import gin
import jax
import pytest

from distillspec_jax.commands import devices
from distillspec_jax.commands import gin_configuration
from distillspec_jax.commands import main
from distillspec_jax.core import configuration
from tests import tiny

# A stage that records its arguments, or fails as it is told.
STAGES = """
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any
from distillspec_jax.core import errors

calls = []

@dataclasses.dataclass(frozen=True)
class Method:
  divergence: str
  beta: float = 0.5

@dataclasses.dataclass(frozen=True)
class Group:
  size: int
  method: Method | None = None

def other(*, run: str, steps: int):
  return f'{run} {steps}'

def loss(p_logits, q_logits, *, scale: float = 1.0):
  return scale * (p_logits - q_logits)

def needs_two(one, two):
  return one + two

def train(
    *,
    run: str,
    num_steps: int,
    batch_sizes: Sequence[int] = (1,),
    method: Method | None = None,
    group: Group | None = None,
    stage: Callable[..., str] | None = None,
    anything: Any = None,
    failure: str | None = None,
):
  calls.append((run, num_steps, batch_sizes, method, group))
  if failure == 'user':
    raise errors.UserError('length is 9; it must be at most 8.')
  if failure == 'disk':
    raise OSError(28, 'No space left on device', '/full/results.jsonl')
  if failure == 'memory':
    raise MemoryError('Unable to allocate')
  if failure == 'failed':
    raise errors.Failed('The certificate fails.')
  if failure == 'interrupt':
    raise KeyboardInterrupt
  if failure == 'terminate':
    raise errors.Terminated
  if failure == 'ours':
    raise TypeError('unsupported operand')
  if failure == 'call':
    needs_two(1)
"""


@pytest.fixture
def stages(monkeypatch, tmp_path, fresh_configuration):
  """The module, whose function is the command `train`; gin forgets it after."""
  del fresh_configuration
  (tmp_path / 'stages.py').write_text(STAGES)
  monkeypatch.delitem(sys.modules, 'stages', raising=False)
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  importlib.invalidate_caches()
  module = importlib.import_module('stages')

  def run(options):
    train = gin_configuration.configured(module.train, options)
    with devices.using(options):
      train()

  command = types.SimpleNamespace(
      HELP='trains', EXAMPLE='distillspec train',
      add_flags=gin_configuration.add_flags, run=run,
  )  # fmt: skip
  monkeypatch.setitem(main.COMMANDS, 'train', command)
  yield module
  monkeypatch.delitem(sys.modules, 'stages')


@pytest.fixture
def fresh_configuration(monkeypatch):
  """gin, JAX's cache of programs and sys.path as in a process of its own."""
  monkeypatch.setattr(sys, 'path', [*sys.path])
  before = configuration.current()
  cache = jax.config.jax_compilation_cache_dir
  seconds = jax.config.jax_persistent_cache_min_compile_time_secs
  gin.clear_config()
  gin.enter_interactive_mode()  # or it refuses the next test's module
  yield
  gin.exit_interactive_mode()
  gin.clear_config()
  configuration.set_current(before.text)
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', seconds)


class _IsComplete(Exception):
  pass


@pytest.fixture
def configure(fresh_configuration, monkeypatch, tmp_path):
  """A function: raises UserError where `distillspec ARGUMENTS` would.

  It stops before work starts: before devices are used.
  """
  del fresh_configuration
  monkeypatch.chdir(tmp_path)

  def stop(options):
    raise _IsComplete

  monkeypatch.setattr(devices, 'using', stop)

  def run(*arguments: str) -> None:
    name, options = main.parse(arguments)
    if name != 'report':  # which uses none
      with pytest.raises(_IsComplete):
        main.COMMANDS[name].run(options)

  return run


@pytest.fixture(scope='session')
def pair(tmp_path_factory):
  """Folders of a target and a draft that read bytes."""
  folder = tmp_path_factory.mktemp('pair')
  target = tiny.model(tiny.BYTES, gain=3.0)  # so that texts differ
  models = {'target': target, 'draft': tiny.noisy(target, 0.3)}
  return {
      name: str(tiny.save(folder / name, model, 'bytes'))
      for name, model in models.items()
  }


@pytest.fixture(scope='session')
def measure(pair, tmp_path_factory):
  """A function: runs a command on the pair and six inputs; its exit code."""
  folder = tmp_path_factory.mktemp('data')
  lines = [{'inputs': word, 'labels': word * 2} for word in tiny.WORDS]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  for split in ('train', 'validation'):
    (folder / f'{split}.jsonl').write_text(text)

  def run(command, folder_of_results, *flags):
    return main.main([
        command, f'--run={folder_of_results}',
        '--gin_file=tasks/json_lines.gin', f'--gin_file=runs/{command}.gin',
        f'--gin.TARGET={pair["target"]}', f'--gin.DRAFT={pair["draft"]}',
        f'--gin.TRAIN={folder}/train.jsonl',
        f'--gin.VALIDATION={folder}/validation.jsonl',
        '--gin.tasks.json_lines.input_length=8',
        '--gin.tasks.json_lines.label_length=8', *flags,
    ])  # fmt: skip

  return run
