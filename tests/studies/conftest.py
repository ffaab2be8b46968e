"""Studies of models that are not there: training and measuring leave traces."""

import json
import pathlib
import types

import pytest

from distillspec_jax.core import results
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.studies import builder as builder_lib
from distillspec_jax.studies import setup as setup_lib
from distillspec_jax.studies import study as study_lib
from distillspec_jax.training import method
from distillspec_jax.training import settings

FINE_TUNE = settings.Training(
    start=settings.Start(model='test'), steps=settings.Steps(num_steps=1)
)
LONGER = settings.Training(
    start=settings.Start(), steps=settings.Steps(num_steps=2)
)
DISTIL = settings.Training(
    start=settings.Start(),
    method=method.Method(divergence='jsd'),
    steps=settings.Steps(num_steps=2),
)


class Stages:
  """Stands in for training and measuring; keeps what it is called with.

  Attributes:
    trained: the folders, relative to the study's, in order.
    measured: likewise.
    pairs: measured folder -> folders of its target and draft.
    failing: folders where either raises what it is told to.
  """

  def __init__(self, root: pathlib.Path, monkeypatch):
    self.root, self.trained, self.measured = root, [], []
    self.trainings, self.failing, self.pairs = {}, {}, {}
    monkeypatch.setattr(builder_lib.loop, 'train', self.train)
    monkeypatch.setattr(
        builder_lib.resumption, 'describe', lambda *given: {'all': repr(given)}
    )
    monkeypatch.setattr(
        study_lib.report_lib, 'report', lambda run: f'{run}/report.html'
    )

  def train(self, *, run, task, training, seed):
    name = str(pathlib.Path(run).relative_to(self.root))
    self.trained.append(name)
    self.trainings[name] = training
    self._fail(name)
    best = pathlib.Path(run) / 'best'
    best.mkdir(parents=True, exist_ok=True)
    digest = f'{name} {training.steps.num_steps} {seed}'
    (best / 'checksums.json').write_text(json.dumps({'digest': digest}))
    rate = results.Metric(10.0, None, 20, 'tokens/s')
    step = results.Metric(1, None, 1, 'steps')
    self._write(run, 'training', {'tokens_per_second': rate, 'step': step})

  def evaluate(self, *, run, draft_name, task, decodings=None, **others):
    name = self._measure(run)
    for decoding in decodings or [decoding_lib.Decoding()]:
      described = decoding.describe(speculative=True, batch_size=1)
      # By place and draft, so that averages can be told.
      place = 3.0 if task.name == 'other' else 2.0
      metric = results.Metric(place, 0.1, 4, 'tokens/block')
      metrics = {'block_efficiency': metric}
      self._write(run, 'acceptance', metrics, draft_name, described)
    self.pairs[name] = others['target'], others['draft']

  def benchmark(self, *, run, draft_name, **others):
    del others
    self._measure(run)
    described = decoding_lib.Decoding().describe(speculative=True, batch_size=1)
    metrics = {'measured_speedup': results.Metric(2.0, 0.1, 4, '1')}
    self._write(run, 'latency', metrics, draft_name, described)

  def _measure(self, run):
    name = str(pathlib.Path(run).relative_to(self.root))
    name = name.replace('.incomplete/', '')
    self.measured.append(name)
    self._fail(name)
    return name

  def _write(self, run, kind, metrics, draft=None, decoding=None):
    results.write(
        run, kind, target='target', draft=draft, task='task', split='test',
        decoding=decoding, metrics=metrics, seed=0,
    )  # fmt: skip

  def _fail(self, name):
    if name in self.failing:
      raise self.failing[name]

  def setup(self, **changes) -> setup_lib.Setup:
    task = types.SimpleNamespace(name='task', vocabulary='bytes')
    return setup_lib.Setup(
        **{
            'task': task,
            'target': FINE_TUNE,
            'draft': FINE_TUNE,
            'distil': DISTIL,
            'control': LONGER,
            'evaluate': self.evaluate,
            **changes,
        }
    )

  def run(self, study, **changes):
    return study_lib.run_study(run=str(self.root), study=study, **changes)


@pytest.fixture
def stages(tmp_path, monkeypatch):
  return Stages(tmp_path / 'run', monkeypatch)
