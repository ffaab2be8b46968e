"""The whole story, end to end, as a user runs it: a file, a folder, a page."""

import dataclasses
import functools
import json
import pathlib
import re
import types

import gin
import numpy as np
import pytest

import distillspec_jax as ds
from distillspec_jax.commands import main
from distillspec_jax.core import results
from distillspec_jax.studies import builder as builder_lib
from distillspec_jax.studies import experiment as experiment_lib
from distillspec_jax.studies import study as study_lib
from distillspec_jax.training import method
from distillspec_jax.training import parallel as parallel_lib
from distillspec_jax.training import settings
from tests import tiny

EXPERIMENT = """
from __gin__ import dynamic_registration
from distillspec_jax.data import tasks
from distillspec_jax.evaluation import acceptance
from distillspec_jax.evaluation.speed import latency
from distillspec_jax.sampling import decoding
from distillspec_jax.studies import experiment
from distillspec_jax.training import method
from distillspec_jax.training import settings
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
settings.Steps.num_steps = 4
settings.Steps.batch_size = 8
settings.Steps.log_every = 1
settings.Steps.checkpoint_every = 4
settings.Validation.every = 4
settings.Validation.examples = 8
settings.Validation.decoding = @decoding.Decoding()
decoding.Decoding.drafting = @decoding.Drafting()
decoding.Drafting.length = 2
distil/method.Method.divergence = 'jsd'
distil/method.Method.fixed_fraction = 0.0
acceptance.evaluate.examples = 8
acceptance.evaluate.batch_size = 8
decoding.grid.block_lengths = (2,)
latency.benchmark.batch_sizes = (2,)
latency.benchmark.repeats = 2
experiment.run_experiment.samples = 1
"""


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):  # one run for all tests that read it
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
  assert kinds == {'run', 'training', 'acceptance', 'latency'}
  assert not list(run.rglob('*.incomplete'))
  samples = json.loads((run / 'samples.json').read_text())
  assert [one['draft'] for one in samples] == ['fine-tuned', 'distilled']
  assert samples[0]['input'] == samples[1]['input'] != '0 and 1?'  # not first


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
        (['x'], {'verifier': 'magic'}, "'magic'"),
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


class Stages:
  """Stands in for training and measuring; keeps what it is called with."""

  def __init__(self, monkeypatch):
    self.trained, self.measured = {}, []
    monkeypatch.setattr(builder_lib.loop, 'train', self.train)
    monkeypatch.setattr(
        study_lib.report_lib, 'report', lambda run: self.measured
    )

  def train(self, *, run, task, training, seed):
    training.check()
    self.trained[pathlib.Path(run).name, seed] = training

  def measure(self, *, run, draft_name, seed, kind=None, **others):
    assert set(others) <= {'target', 'draft', 'task', 'show'}
    self.measured.append((kind or pathlib.Path(run).name, draft_name, seed))


FINE_TUNE = settings.Training(
    start=settings.Start(model='test'), steps=settings.Steps(num_steps=1)
)
PARALLEL = parallel_lib.Parallel(block_length=2)
DISTIL = settings.Training(
    start=settings.Start(),
    target=settings.Target(dtype='bfloat16'),
    method=method.Method(divergence='jsd'),
    steps=settings.Steps(num_steps=1),
)


def run_stages(stages, tmp_path, **changes):
  experiment_lib.run_experiment(
      run=str(tmp_path / 'run'),
      **{
          'task': types.SimpleNamespace(name='task', vocabulary=None),
          'fine_tune_target': FINE_TUNE,
          'fine_tune_draft': FINE_TUNE,
          'distil': DISTIL,
          'control': dataclasses.replace(FINE_TUNE, start=settings.Start()),
          'evaluate': stages.measure,
          'benchmark': stages.measure,
          'samples': 0,
          **changes,
      },
  )


def test_drafts_start_from_each_other_and_the_target_is_shared(
    tmp_path, monkeypatch
):
  stages = Stages(monkeypatch)
  run_stages(stages, tmp_path, seeds=(0, 1))
  run = tmp_path / 'run'
  assert [name for name in stages.trained] == [
      ('target', 0),
      *((name, 0) for name in ('fine-tuned', 'fine-tuned_longer', 'distilled')),
      *((name, 1) for name in ('fine-tuned', 'fine-tuned_longer', 'distilled')),
  ]
  fine_tuned = str(run / 'seed_1' / 'fine-tuned')
  for name in ('fine-tuned_longer', 'distilled'):
    assert stages.trained[name, 1].start.checkpoint == fine_tuned
  assert stages.trained['distilled', 1].target == settings.Target(
      checkpoint=str(run / 'target'), dtype='bfloat16'
  )
  assert stages.trained['fine-tuned_longer', 1].target is None
  # The control needs no clock, and one seed's time is enough.
  assert stages.measured == [
      ('evaluation_fine-tuned', 'fine-tuned', 0),
      ('benchmark_fine-tuned', 'fine-tuned', 0),
      ('evaluation_fine-tuned_longer', 'fine-tuned longer', 0),
      ('evaluation_distilled', 'distilled', 0),
      ('benchmark_distilled', 'distilled', 0),
      ('evaluation_fine-tuned', 'fine-tuned', 1),
      ('evaluation_fine-tuned_longer', 'fine-tuned longer', 1),
      ('evaluation_distilled', 'distilled', 1),
  ]


def test_a_parallel_draft_is_made_of_the_distilled_one(tmp_path, monkeypatch):
  stages = Stages(monkeypatch)
  changes = {'method': method.Method(divergence='jsd', parallel=PARALLEL)}
  parallel = experiment_lib.ParallelDraft(
      training=dataclasses.replace(DISTIL, **changes),
      evaluate=functools.partial(stages.measure, kind='parallel'),
  )
  run_stages(stages, tmp_path, parallel=parallel, control=None)
  folder = tmp_path / 'run' / 'seed_0'
  trained = stages.trained['parallel', 0]
  assert trained.start.checkpoint == str(folder / 'distilled')
  assert trained.target.checkpoint == str(tmp_path / 'run' / 'target')
  assert stages.measured[-3:] == [
      ('evaluation_distilled', 'distilled', 0),
      ('benchmark_distilled', 'distilled', 0),
      ('parallel', 'parallel', 0),
  ]
  with pytest.raises(ds.UserError, match='Method.parallel is None'):
    dataclasses.replace(parallel, training=DISTIL)


def test_a_model_that_has_changed_is_measured_again(
    tmp_path, monkeypatch, capfd
):
  stages = Stages(monkeypatch)
  best = tmp_path / 'run' / 'seed_0' / 'distilled' / 'best'
  best.mkdir(parents=True)
  for digest in ('a', 'a', 'b'):
    (best / 'checksums.json').write_text(json.dumps({'digest': digest}))
    run_stages(stages, tmp_path, benchmark=None)
  assert [name for name, *_ in stages.measured] == [
      'evaluation_fine-tuned',
      'evaluation_fine-tuned_longer',
      'evaluation_distilled',
      'evaluation_distilled',
  ]
  assert 'evaluation_distilled: measured again' in capfd.readouterr().err


@pytest.mark.parametrize('of_all', [False, True])
def test_all_drafts_share_the_encoder_or_those_that_are_set_so(
    tmp_path, monkeypatch, of_all
):
  stages = Stages(monkeypatch)
  sharing = lambda training: dataclasses.replace(
      training,
      start=dataclasses.replace(training.start, shared_encoder=True),
  )
  changes = {'distil': sharing(DISTIL)}
  if of_all:
    changes = {'fine_tune_draft': sharing(FINE_TUNE)}
  run_stages(stages, tmp_path, **changes)
  trained = {name: training for (name, _), training in stages.trained.items()}
  target = settings.Target(checkpoint=str(tmp_path / 'run' / 'target'))
  for name in ('fine-tuned', 'fine-tuned_longer'):
    assert trained[name].start.shared_encoder == of_all
    assert trained[name].target == (target if of_all else None)
  assert trained['distilled'].start.shared_encoder
  assert not trained['target'].start.shared_encoder


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'seeds': ()}, 'seeds is empty'),
        ({'fine_tune_target': DISTIL}, 'Start.model is None'),
        (
            {
                'distil': dataclasses.replace(
                    DISTIL,
                    method=method.Method(fixed_fraction=0.0),
                    steps=settings.Steps(num_steps=1, pack=True),
                )
            },
            'Steps.pack is True',
        ),
        (
            {'distil': dataclasses.replace(DISTIL, target='mine')},
            'checkpoint mine would not be used',
        ),
        (
            {
                'control': dataclasses.replace(
                    FINE_TUNE, start=settings.Start(checkpoint='mine')
                )
            },
            'checkpoint mine would not be used',
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_work_starts(
    tmp_path, monkeypatch, changes, message
):
  stages = Stages(monkeypatch)
  with pytest.raises(ds.UserError, match=message):
    run_stages(stages, tmp_path, **changes)
  assert not stages.trained


def test_a_metric_that_fails_is_refused_before_training(tmp_path, monkeypatch):
  stages = Stages(monkeypatch)
  task = tiny.task(tmp_path, metrics=(lambda answers, labels: 1.0,))
  with pytest.raises(ds.UserError, match='must return one number per answer'):
    run_stages(stages, tmp_path, task=task)
  assert not stages.trained
