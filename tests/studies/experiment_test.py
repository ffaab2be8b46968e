"""The whole story, end to end, as a user runs it: a file, a folder, a page."""

import json
import re

import gin
import numpy as np
import pytest

import distillspec_jax as ds
from distillspec_jax.commands import main
from distillspec_jax.core import results
from distillspec_jax.studies import experiment as experiment_lib

EXPERIMENT = """
from __gin__ import dynamic_registration
from distillspec_jax.studies import experiment
from distillspec_jax.data import tasks
from distillspec_jax.evaluation import acceptance
from distillspec_jax.evaluation.speed import latency
from distillspec_jax.training import loop
from distillspec_jax.training import method
from distillspec_jax.training import optimizers
include 'runs/experiment.gin'

TASK = @tasks.json_lines()
tasks.json_lines.train = '{folder}/train.jsonl'
tasks.json_lines.validation = '{folder}/validation.jsonl'
tasks.json_lines.inputs = 'question'
tasks.json_lines.labels = 'answer'
tasks.json_lines.vocabulary = 'bytes'
tasks.json_lines.input_length = 16
tasks.json_lines.label_length = 12
TARGET = 'test'
DRAFT = 'test'
loop.train.num_steps = 4
loop.train.batch_size = 8
loop.train.log_every = 1
loop.train.validation_every = 4
loop.train.validation_examples = 8
loop.train.validation_block_length = 2
loop.train.checkpoint_every = 4
distil/method.Method.divergence = 'jsd'
distil/method.Method.fixed_fraction = 0.0
acceptance.evaluate.examples = 8
acceptance.evaluate.batch_size = 8
acceptance.evaluate.block_lengths = (2,)
latency.benchmark.batch_sizes = (2,)
latency.benchmark.block_lengths = (2,)
latency.benchmark.repeats = 2
experiment.run_experiment.samples = 1
"""


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  folder = tmp_path_factory.mktemp('experiment')
  for split, count in (('train', 40), ('validation', 10)):
    rows = [
        {'question': f'{i} and {i + 1}?', 'answer': f'{2 * i + 1}.'}
        for i in range(count)
    ]
    (folder / f'{split}.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in rows)
    )
  (folder / 'experiment.gin').write_text(EXPERIMENT.format(folder=folder))
  arguments = [
      'experiment',
      f'--gin_file={folder / "experiment.gin"}',
      f'--run={folder / "run"}',
  ]
  gin.clear_config()
  assert main.main(arguments) == 0
  yield folder / 'run', arguments
  gin.clear_config()


def test_an_experiment_leaves_models_results_and_a_page(experiment):
  run, _ = experiment
  page = (run / 'report.html').read_text()
  assert 'Block efficiency' in page
  # It needs no other file: all that is loaded is in it.
  loaded = re.findall(r'(?:src|href)="(?!#)|url\((?!#)', page)
  assert not loaded
  assert list((run / 'figures').glob('*.png'))
  assert 'json_lines.train' in (run / 'config.gin').read_text()
  kinds = {
      line['kind']
      for path in run.rglob('results.jsonl')
      for line in results.read(path)
  }
  assert kinds == {'training', 'acceptance', 'latency'}
  assert not list(run.rglob('*.incomplete'))


def test_run_again_it_does_nothing_twice(experiment):
  run, arguments = experiment
  before = {p: p.read_text() for p in run.rglob('results.jsonl')}
  gin.clear_config()
  assert main.main(arguments) == 0
  assert {p: p.read_text() for p in run.rglob('results.jsonl')} == before


def test_the_models_answer_from_python(experiment):
  run, _ = experiment
  target = ds.load(run / 'target')
  draft = ds.load(run / 'seed_0' / 'distilled')
  inputs = ['3 and 4?', '1 and 2?', 'x']
  plain = ds.generate(target, inputs, max_new_tokens=9)
  fast = ds.generate(target, inputs, draft=draft, max_new_tokens=9)
  assert len(fast.text) == 3
  assert fast.text == plain.text
  np.testing.assert_array_equal(fast.tokens, plain.tokens)
  assert 1.0 <= fast.statistics.block_efficiency <= 6.0
  sampled = [
      ds.generate(target, inputs, draft=draft, temperature=1.0, seed=seed)
      for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(sampled[0].tokens, sampled[1].tokens)
  assert not np.array_equal(sampled[0].tokens, sampled[2].tokens)


@pytest.mark.parametrize(
    'inputs, changes, message',
    [
        ([], {}, 'inputs is empty'),
        ('text', {}, 'one string'),
        (['x'], {'temperature': -1.0}, 'temperature is -1.0'),
        (['x'], {'block_length': 0}, 'block_length is 0'),
        (['x'], {'block_length': 200}, 'block_length is 200'),
        (['x'], {'max_new_tokens': 0}, 'max_new_tokens is 0'),
        (['x'], {'verification': 'magic'}, "'magic'"),
    ],
)
def test_bad_requests_are_refused(experiment, inputs, changes, message):
  run, _ = experiment
  target = ds.load(run / 'target')
  with pytest.raises(ds.UserError, match=message):
    ds.generate(target, inputs, draft=target, **changes)


def test_a_folder_without_a_model_is_refused(tmp_path):
  with pytest.raises(ds.UserError, match='holds no model'):
    ds.load(tmp_path)


@pytest.mark.parametrize('shared', [False, True])
def test_an_experiment_shares_the_encoder_with_all_drafts_or_as_bound(
    tmp_path, monkeypatch, shared
):
  calls = {}

  def stage(name):
    return lambda **kwargs: calls.setdefault(name, kwargs)

  monkeypatch.setattr(experiment_lib.report_lib, 'report', lambda run: run)
  experiment_lib.run_experiment(
      run=str(tmp_path / 'run'),
      task=None,
      fine_tune_target=stage('target'),
      fine_tune_draft=stage('draft'),
      control=stage('control'),
      distil=stage('distil'),
      evaluate=lambda **_: None,
      shared_encoder=shared,
      samples=0,
  )
  target = str(tmp_path / 'run' / 'target')
  for name in ('draft', 'control'):
    assert calls[name].get('target') == (target if shared else None)
    assert calls[name].get('shared_encoder', False) == shared
  assert calls['distil']['target'] == target
  # Unless all do, it is what the file binds it to.
  assert ('shared_encoder' in calls['distil']) == shared
  assert 'shared_encoder' not in calls['target']
