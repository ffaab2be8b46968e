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
from distillspec_jax.core import results
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import loop
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from distillspec_jax.training import settings
from tests import tiny
from tests.distributed import loopback

ROOT = pathlib.Path(main.__file__).parents[2]
STEPS = 12
STEP_SETTINGS = {
    'num_steps': STEPS, 'batch_size': 8, 'log_every': 1, 'checkpoint_every': 3
}  # fmt: skip
VALIDATION = {'every': STEPS, 'examples': 6}
MODEL = {'num_encoder_layers': 1, 'num_decoder_layers': 1}  # of tiny.config
METHOD = {'divergence': 'forward_kl', 'fixed_fraction': 0.0}
OPTIMIZER = {'name': 'adamw', 'learning_rate': 3e-3, 'warmup_steps': 1}
GIN = """
from __gin__ import dynamic_registration
from distillspec_jax.data import tasks
from distillspec_jax.models import config
from distillspec_jax.sampling import decoding
from distillspec_jax.training import method
from distillspec_jax.training import optimizers
from distillspec_jax.training import settings
from distillspec_jax.training import settings
include 'runs/train.gin'
TASK = @tasks.parallel_text()
MODEL = @config.published()
METHOD = @method.Method()
settings.Training.target = @settings.Target()
settings.Validation.decoding = @decoding.Decoding()
decoding.Decoding.drafting = @decoding.Drafting()
decoding.Drafting.length = 2
"""
# The command line; process VICTIM sends itself SIGNAL after a step.
CHILD = """
import os, signal, sys
from distillspec_jax.commands import main
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training.recorder import Recorder
record = Recorder.step
def step(self, number, metrics):
  record(self, number, metrics)
  if number == int(os.environ['AFTER_STEP']):
    os.kill(os.getpid(), getattr(signal, os.environ['SIGNAL']))
if f'--process_index={os.environ.get("VICTIM")}' in sys.argv:
  Recorder.step = step
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
    printed = [child.communicate(timeout=240) for child in children]
  finally:
    for child in children:
      child.kill()
  return [child.returncode for child in children], printed


def steps_saved(folder):
  return sorted(
      int(path.name)
      for path in (folder / 'checkpoints').iterdir()
      if path.name.isdigit()
  )


def trained_here(folder, task, target, mesh):
  """The same run by this process and its eight devices."""
  training = settings.Training(
      start=settings.Start(model=tiny.config(tiny.BYTES, **MODEL)),
      target=settings.Target(checkpoint=str(target)),
      method=method_lib.Method(**METHOD),
      optimizer=optimizers.Optimizer(**OPTIMIZER),
      steps=settings.Steps(**STEP_SETTINGS),
      validation=settings.Validation(
          decoding=decoding_lib.Decoding(
              drafting=decoding_lib.Drafting(length=2)
          ),
          **VALIDATION,
      ),
      mesh=mesh,
  )
  loop.train(run=str(folder), task=task, training=training)


def numbers(folder):
  """(step, name) -> value, but for what differs between machines."""
  return {
      (line['metrics']['step']['value'], name): metric['value']
      for line in results.read(folder / 'results.jsonl')
      if line['kind'] == 'training'
      for name, metric in line['metrics'].items()
      if name != 'tokens_per_second'
  }


@pytest.fixture(name='folder')
def _folder(tmp_path):
  """A folder with a task, and the gin file of the run that distils `target`."""
  tiny.task(tmp_path / 'task')
  bindings = {
      **{f'settings.Steps.{n}': value for n, value in STEP_SETTINGS.items()},
      **{f'settings.Validation.{n}': v for n, v in VALIDATION.items()},
      **{f'method.Method.{name}': value for name, value in METHOD.items()},
      **{f'optimizers.Optimizer.{n}': value for n, value in OPTIMIZER.items()},
      **{f'config.published.{name}': value for name, value in MODEL.items()},
      'config.published.name': 'test',
      'config.published.vocab_size': 384,
      'settings.Target.checkpoint': str(tmp_path / 'target'),
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
  target = tiny.model(tiny.BYTES, gain=2.0, **MODEL)
  tiny.save(folder / 'target', target, 'bytes')

  # Four, of which one is killed: the others say so and end.
  codes, printed = launch(
      folder, 4, VICTIM='1', AFTER_STEP='7', SIGNAL='SIGKILL'
  )
  assert codes == [69, -9, 69, 69], printed
  for _, text in (printed[0], *printed[2:]):
    assert 'distillspec: host 1 (' in text and 'was lost: its process' in text
  # Where step 7 was done, 3 was written; of 6 that depends on the disk.
  assert steps_saved(folder / 'run') in ([3], [3, 6])

  # Two, of which one is to be preempted: all save the same step and end.
  codes, printed = launch(
      folder, 2, VICTIM='1', AFTER_STEP='8', SIGNAL='SIGTERM'
  )
  assert codes == [143, 143], printed
  assert 8 <= steps_saved(folder / 'run')[-1] < STEPS
  # Only process 0 prints, but for why a process ends.
  assert 'run: train: 48 examples' in printed[0][1]
  shown = [line for line in printed[1][1].splitlines() if '[Gloo]' not in line]
  assert len(shown) == 1 and shown[0].endswith(': terminated')

  # One, on another mesh, beside one that has done it all.
  target = folder / 'target'
  trained_here(folder / 'run', task, target, mesh_lib.MeshSizes(fsdp=4))
  trained_here(folder / 'whole', task, target, mesh_lib.MeshSizes())
  here, there = numbers(folder / 'whole'), numbers(folder / 'run')
  assert here.keys() == there.keys()
  for key, value in here.items():
    assert there[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
  conversion.convert(
      str(folder / 'run'), str(folder / 'out'), to='hugging_face'
  )
  run, exported = (loading.load(folder / name) for name in ('run', 'out'))
  jax.tree.map(
      np.testing.assert_array_equal, run.model.params, exported.model.params
  )


def test_hosts_with_different_configurations_are_refused(folder):
  codes, printed = launch(
      folder, 2, own=[(), ('--gin.settings.Steps.batch_size=16',)]
  )
  assert codes == [2, 2], printed
  for _, text in printed:
    assert 'distillspec: The hosts have different configurations: ' in text
    assert 'batch_size = 16' in text and text.count('\n') == 1


@pytest.mark.usefixtures('fresh_configuration')
@pytest.mark.parametrize(
    'index, message',
    [
        (0, 'Host 1 of 2 did not come within 1 s; 0 ('),
        (1, 'did not answer process 1 for 1 s (connection refused)'),
    ],
)
def test_a_host_that_does_not_come_is_named(
    folder, capsys, monkeypatch, index, message
):
  code = main.main([
      'train', '--run=x', f'--gin_file={folder / "run.gin"}',
      f'--coordinator=127.0.0.1:{loopback.free_port()}', '--process_count=2',
      f'--process_index={index}', '--start_timeout=1',
  ])  # fmt: skip
  error = capsys.readouterr().err
  assert code == 1
  assert error.startswith('distillspec: ') and error.count('\n') == 1
  assert message in error
