"""Training on several hosts: processes of the command line over loopback.

One run goes through what can happen: four processes, of which one is killed;
two, of which one gets the notice of preemption; then one, to the end. What it
leaves is compared with the same run by one process from the start.
"""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from distillspec_jax.checkpoints import conversion
from distillspec_jax.checkpoints import loading
from distillspec_jax.commands import main
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.data import sharded_batches
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.training import loop
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from tests.distributed import loopback
from tests.training import tiny

ROOT = pathlib.Path(main.__file__).parents[2]
STEPS = 12
SETTINGS = {
    'num_steps': STEPS,
    'batch_size': 8,
    'log_every': 1,
    'validation_every': STEPS,
    'validation_examples': 6,
    'validation_block_length': 2,
    'checkpoint_every': 3,
}
MODEL = {'num_encoder_layers': 1, 'num_decoder_layers': 1}  # of tiny.config
METHOD = {'divergence': 'forward_kl', 'fixed_fraction': 0.0}
OPTIMIZER = {'name': 'adamw', 'learning_rate': 3e-3, 'warmup_steps': 1}
GIN = """
from __gin__ import dynamic_registration
from distillspec_jax.data import tasks
from distillspec_jax.models import config
from distillspec_jax.training import loop
from distillspec_jax.training import method
from distillspec_jax.training import optimizers
loop.train.model = @config.published()
loop.train.task = @tasks.parallel_text()
loop.train.method = @method.Method()
loop.train.optimizer = @optimizers.Optimizer()
"""
# The command line; process VICTIM sends itself SIGNAL after a step.
CHILD = """
import os, signal, sys
from distillspec_jax.commands import main
from distillspec_jax.training import loop
record = loop._Recorder.step
def step(self, number, metrics):
  record(self, number, metrics)
  if number == int(os.environ['AFTER_STEP']):
    os.kill(os.getpid(), getattr(signal, os.environ['SIGNAL']))
if f'--process_index={os.environ.get("VICTIM")}' in sys.argv:
  loop._Recorder.step = step
sys.exit(main.main(sys.argv[1:]))
"""


def launch(folder, count, own=((), (), (), ()), **environment):
  """Exit codes and outputs of `count` processes of `distillspec train`."""
  port = loopback.free_port()
  children = []
  for i in range(count):
    children.append(
        subprocess.Popen(
            [
                sys.executable, '-c', CHILD, 'train', f'--run={folder / "run"}',
                f'--gin_file={folder / "run.gin"}', *own[i],
                f'--coordinator=127.0.0.1:{port}', f'--process_count={count}',
                f'--process_index={i}',
            ],
            cwd=ROOT,
            env={
                **os.environ,
                'JAX_PLATFORMS': 'cpu',
                'JAX_NUM_CPU_DEVICES': '1',
                'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
                'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',  # of the compiler
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )  # fmt: skip
  try:
    said = [child.communicate(timeout=240) for child in children]
  finally:
    for child in children:
      child.kill()
  return [child.returncode for child in children], said


def steps_saved(folder):
  return sorted(
      int(path.name)
      for path in (folder / 'checkpoints').iterdir()
      if path.name.isdigit()
  )


def trained_here(folder, task, target, **changes):
  """The same run by this process and its eight devices."""
  loop.train(
      run=str(folder),
      task=task,
      model=tiny.config(**MODEL),
      target=str(target),
      method=method_lib.Method(**METHOD),
      optimizer=optimizers.Optimizer(**OPTIMIZER),
      **{**SETTINGS, **changes},
  )


def numbers(folder):
  """(step, name) -> value, but for what differs between machines."""
  return {
      (line['metrics']['step']['value'], name): metric['value']
      for line in results.read(folder / 'results.jsonl')
      for name, metric in line['metrics'].items()
      if name != 'tokens_per_second'
  }


@pytest.fixture(name='folder')
def _folder(tmp_path):
  """A folder with a task, and the gin file of the run that distils `target`."""
  tiny.task(tmp_path / 'task')
  bindings = {
      **{f'loop.train.{name}': value for name, value in SETTINGS.items()},
      **{f'method.Method.{name}': value for name, value in METHOD.items()},
      **{f'optimizers.Optimizer.{n}': value for n, value in OPTIMIZER.items()},
      **{f'config.published.{name}': value for name, value in MODEL.items()},
      'config.published.name': 'test',
      'config.published.vocab_size': 384,
      'loop.train.target': str(tmp_path / 'target'),
      'tasks.parallel_text.vocabulary': 'bytes',
      'tasks.parallel_text.name': 'tiny',
      'tasks.parallel_text.input_length': 8,
      'tasks.parallel_text.label_length': 12,
  }
  for split in ('train', 'validation'):
    bindings[f'tasks.parallel_text.{split}'] = tuple(
        str(tmp_path / 'task' / f'{split}.{side}') for side in ('in', 'out')
    )
  text = ''.join(f'{name} = {value!r}\n' for name, value in bindings.items())
  (tmp_path / 'run.gin').write_text(GIN + text)
  return tmp_path


@pytest.fixture
def compiled_quickly():
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


# One test, so that what it needs is made once however tests are distributed.
@pytest.mark.usefixtures('compiled_quickly')
def test_a_run_goes_through_losses_of_hosts_and_ends_as_one_process_does(
    folder,
):
  task = tiny.task(folder / 'task')
  loop.train(
      run=str(folder / 'target'), task=task, model=tiny.config(**MODEL),
      num_steps=1, batch_size=8, validation_examples=8, seed=1,
  )  # fmt: skip

  # Four, of which one is killed: the others say so and end.
  codes, said = launch(folder, 4, VICTIM='1', AFTER_STEP='7', SIGNAL='SIGKILL')
  assert codes == [69, -9, 69, 69], said
  for _, text in (said[0], *said[2:]):
    assert 'distillspec: host 1 (' in text and 'was lost: its process' in text
  # Where step 7 was done, 3 was written; of 6 that depends on the disk.
  assert steps_saved(folder / 'run') in ([3], [3, 6])

  # Two, of which one is to be preempted: all save the same step and end.
  codes, said = launch(folder, 2, VICTIM='1', AFTER_STEP='8', SIGNAL='SIGTERM')
  assert codes == [143, 143], said
  assert 8 <= steps_saved(folder / 'run')[-1] < STEPS
  # Only process 0 prints, but for why a process ends.
  assert 'run: train: 48 examples' in said[0][1]
  shown = [line for line in said[1][1].splitlines() if '[Gloo]' not in line]
  assert len(shown) == 1 and shown[0].endswith(': terminated')

  # One, on another mesh, beside one that has done it all.
  trained_here(folder / 'run', task, folder / 'target', mesh_fsdp=4)
  trained_here(folder / 'whole', task, folder / 'target')
  here, there = numbers(folder / 'whole'), numbers(folder / 'run')
  assert here.keys() == there.keys()
  for key, value in here.items():
    assert there[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
  conversion.convert(
      str(folder / 'run'), str(folder / 'out'), to='hugging_face'
  )
  model, exported = (loading.load(folder / name) for name in ('run', 'out'))
  jax.tree.map(np.testing.assert_array_equal, model.params, exported.params)


def test_hosts_with_different_configurations_are_refused(folder):
  codes, said = launch(folder, 2, own=[(), ('--gin.loop.train.batch_size=16',)])
  assert codes == [2, 2]
  for _, text in said:
    assert 'distillspec: The hosts have different configurations: ' in text
    assert 'batch_size = 16' in text and text.count('\n') == 1


@pytest.mark.usefixtures('clean_gin')
@pytest.mark.parametrize(
    'index, message',
    [
        (0, 'Host 1 of 2 did not come within 1 s; 0 ('),
        (1, 'did not answer process 1 for 1 s (connection refused)'),
    ],
)
def test_who_does_not_come_is_said(folder, capsys, monkeypatch, index, message):
  monkeypatch.setattr(main, '_use_compilation_cache', lambda: None)
  code = main.main([
      'train', '--run=x', f'--gin_file={folder / "run.gin"}',
      f'--coordinator=127.0.0.1:{loopback.free_port()}', '--process_count=2',
      f'--process_index={index}', '--start_timeout=1',
  ])  # fmt: skip
  said = capsys.readouterr().err
  assert code == 1
  assert said.startswith('distillspec: ') and said.count('\n') == 1
  assert message in said


def test_fewer_examples_than_hosts_are_refused(tmp_path, monkeypatch):
  task = tiny.task(tmp_path)
  mesh = mesh_lib.make_mesh()
  monkeypatch.setattr(jax, 'process_count', lambda: 9)
  with pytest.raises(errors.UserError, match='8 examples for 9 processes'):
    sharded_batches.batches(mesh, task, 'validation', 8, seed=0)


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_the_rows_lie_as_in_one_batch(tmp_path, shape):
  task = tiny.task(tmp_path)
  mesh = mesh_lib.make_mesh(*shape)
  found = next(sharded_batches.batches(mesh, task, 'train', 8, seed=0))
  alone = mesh_lib.make_mesh()
  wanted = next(sharded_batches.batches(alone, task, 'train', 8, seed=0))
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.fixture(name='clean_gin')
def _clean_gin():
  import gin

  gin.clear_config()
  with gin.unlock_config():
    yield
  gin.clear_config()
