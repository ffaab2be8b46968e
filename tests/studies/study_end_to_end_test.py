"""Each kind of study once, with models, as small as they can be."""

import functools
import math

import pytest

from distillspec_jax.core import results
from distillspec_jax.core import study_file
from distillspec_jax.evaluation import acceptance
from distillspec_jax.evaluation.speed import latency
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.studies import experiment
from distillspec_jax.studies import garden
from distillspec_jax.studies import grid
from distillspec_jax.studies import lossy
from distillspec_jax.studies import setup as setup_lib
from distillspec_jax.studies import study as study_lib
from distillspec_jax.studies import transfer
from distillspec_jax.training import method
from distillspec_jax.training import settings
from tests import tiny

STEPS = settings.Steps(num_steps=1, batch_size=8)
LONGER = settings.Steps(num_steps=2, batch_size=8)
VALIDATION = settings.Validation(examples=4, measure='loss', keep='last')
DECODINGS = decoding_lib.grid(temperatures=(1.0,), block_lengths=(2,))
KD = method.Method(divergence='forward_kl')


def training(model=None, **changes):
  start = settings.Start(model=model)
  return settings.Training(
      start=start, validation=VALIDATION, **{'steps': STEPS, **changes}
  )


def setup(folder, **changes):
  evaluate = functools.partial(
      acceptance.evaluate, examples=4, batch_size=4, decodings=DECODINGS
  )
  return setup_lib.Setup(
      **{
          'task': tiny.task(folder / 'data', metrics=('exact_match',)),
          'target': training('test'),
          'draft': training('test'),
          'distil': training(method=KD),
          'evaluate': evaluate,
          **changes,
      }
  )


def a_grid(folder):
  methods = {'kd': KD, 'jsd': method.Method(divergence='jsd')}
  control = training()
  return grid.Grid(setup=setup(folder, control=control), methods=methods), 4


def a_garden(folder):
  benchmark = functools.partial(
      latency.benchmark, batch_sizes=(2,), repeats=2, decodings=DECODINGS
  )
  return (
      garden.Garden(
          setup=setup(folder, benchmark=benchmark),
          targets={
              'large': training('test'),
              'small': training('test', steps=LONGER),
          },
          distil_targets=training(method=KD),
      ),
      8,
  )


def a_transfer(folder):
  other = tiny.task(folder / 'other', name='other')
  return transfer.Transfer(setup=setup(folder), tasks={'other': other}), 4


def a_lossy(folder):
  return (
      lossy.Lossy(
          setup=setup(folder),
          functions=('linear',),
          residuals=('relaxed',),
          epsilons=(0.1,),
          temperatures=(1.0,),
          truncations=lossy.truncations(top_k=(3,)),
          block_length=2,
          drafts=('distilled',),
      ),
      3,
  )


def an_experiment(folder):
  """Of models that are given: the target as it is, and the draft."""
  model = tiny.model(tiny.BYTES)
  target = str(tiny.save(folder / 'target', model, 'bytes'))
  draft = str(tiny.save(folder / 'draft', tiny.noisy(model, 0.3), 'bytes'))
  given = setup(folder, target=target, draft=draft)
  return experiment.Experiment(setup=given, samples=1), 2


@pytest.mark.parametrize(
    'make', [a_grid, a_garden, a_transfer, a_lossy, an_experiment]
)
def test_it_ends_with_results_for_every_row_and_a_page(make, tmp_path):
  study, count = make(tmp_path)
  run = tmp_path / 'run'
  page = study_lib.run_study(run=str(run), study=study, title='A title')
  assert page == str(run / 'report.html')
  written = study_file.read(run)
  assert written['kind'] == study.kind and written['title'] == 'A title'
  assert len(written['rows']) == count
  names = {row.name for row in written['rows']}
  for row in written['rows']:
    assert row.failed is None
    assert row.control is None or row.control in names
    assert set(row.labels) <= set(written['axes'])
    lines = [
        line
        for folder in row.results
        for line in results.read(run / folder / results.FILE)
    ]
    for of in row.lines.values():
      if of['kind'] in {line['kind'] for line in lines}:
        assert any(
            all({**line['decoding'], **line}[key] == of[key] for key in of)
            for line in lines
        ), (row.name, of)
    kinds = {line['kind'] for line in lines}
    assert kinds >= {'acceptance'}
  for one in written['averages']:
    assert math.isfinite(one['value'])
  before = {p: p.stat().st_mtime_ns for p in run.rglob(results.FILE)}
  study_lib.run_study(run=str(run), study=study)
  assert {p: p.stat().st_mtime_ns for p in run.rglob(results.FILE)} == before
