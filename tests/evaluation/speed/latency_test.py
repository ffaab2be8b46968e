"""The lines of the wall clock: which there are and how their numbers relate.

How fast anything is depends on the machine and is not tested.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from distillspec_jax.core import cost_model
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.evaluation.speed import latency
from distillspec_jax.sampling import decoding as decoding_lib
from tests import tiny

L = 8
EOS = 39  # a token that the target says often
COSTS = costs.Costs(
    prefill=0.0,
    step=2.0,
    draft_prefill=0.0,
    draft_first=0.5,
    draft=0.5,
    verify={2: 3.0},
)


@pytest.fixture
def clock(monkeypatch):
  """A clock of which every reading is one second after the last."""
  seconds = itertools.count(0.0, 1.0)
  monkeypatch.setattr(latency.time, 'perf_counter', lambda: next(seconds))


def measure(batches, target=tiny.target, eos_id=1):
  decoding = decoding_lib.Decoding(
      block_length=2, max_new_tokens=L, eos_ids=(eos_id,)
  )
  found = latency.measure(
      target(), tiny.draft(), batches, [decoding], COSTS, seed=0
  )
  return found.plain, found.fast[2]


def test_greedy_runs_emit_the_same_tokens(clock):
  batches = [tiny.batch(3, seed=seed) for seed in range(3)]
  plain, fast = measure(batches, eos_id=EOS)
  assert plain['compile_s'].value == fast['compile_s'].value == 1.0
  # Each run takes a second by this clock, so rates are tokens of a run.
  assert plain['tokens_per_second'] == fast['tokens_per_second']
  assert plain['tokens_per_second'].value < 3 * L
  assert fast['measured_speedup'] == (1.0, 0.0, 3, '1')


def test_predictions_are_the_cost_models(clock):
  _, fast = measure([tiny.batch(3, seed=seed) for seed in range(3)])
  tau = fast['block_efficiency']
  assert 1 <= tau.value <= 3
  assert tau.count == 9
  assert fast['cost_ratio'].value == 0.25
  assert fast['verify_ratio'].value == 1.5
  for name, verify in (
      ('predicted_speedup', 1.0),
      ('predicted_speedup_with_verify', 1.5),
  ):
    value, error, _, _ = fast[name]
    assert value == cost_model.speedup(tau.value, 0.25, 2, verify)
    assert error == pytest.approx(value / tau.value * tau.standard_error)


def test_tokens_of_padding_rows_do_not_count(clock):
  plain, fast = measure([tiny.batch(3, empty=2)])
  assert plain['tokens_per_second'].value <= L
  assert fast['tokens_per_second'].value <= L
  assert fast['block_efficiency'].count == 1


def test_padding_of_the_larger_vocabulary_is_never_emitted(clock):
  """The target's logit of its row of padding is often the largest."""

  def larger():
    model = tiny.target(tiny.V + 1)
    params = jax.tree.map(np.copy, model.params)
    params['decoder']['logits_dense']['kernel'][:, -1] *= 100
    return dataclasses.replace(model, params=params)

  # A row would end there, so that there would be fewer tokens.
  plain, fast = measure([tiny.batch(9)], target=larger, eos_id=tiny.V)
  assert plain['tokens_per_second'].value == 9 * L
  assert fast['tokens_per_second'].value == 9 * L


def plan(scale, verify_s):
  """The plan's metrics, with the clock's times."""
  decodings = [
      decoding_lib.Decoding(block_length=size, max_new_tokens=L, eos_ids=())
      for size in (1, 2)
  ]
  prices = COSTS._replace(verify={1: verify_s, 2: verify_s})
  found = latency.measure(
      tiny.target(),
      tiny.draft(scale=scale),
      [tiny.batch(8)],
      decodings,
      prices,
      seed=0,
  )
  return found.plan, found.fast


def test_a_perfect_draft_is_planned_with_the_longest_block(clock):
  found, fast = plan(scale=0.0, verify_s=2.0)
  assert found.block_length == 2
  # 8 tokens in 3 blocks of 3 s, against 8 steps of 2 s.
  assert found.speedup == pytest.approx(16 / 9)
  for size, calls, block_s in ((1, 4, 2.5), (2, 3, 3.0)):
    metrics = fast[size]
    assert metrics['planned_block_length'].value == 2
    assert metrics['planned_speedup'].value == found.speedup
    measured = fast[2]['measured_speedup']
    assert metrics['planned_measured_speedup'] == measured
    by_place = metrics['predicted_speedup_by_place'].value
    assert by_place == pytest.approx(16 / (calls * block_s))


def test_where_nothing_pays_the_plan_is_not_to_speculate(clock):
  found, fast = plan(scale=0.0, verify_s=20.0)
  assert found.block_length is None
  for metrics in fast.values():
    assert metrics['planned_block_length'].value == 0
    assert metrics['planned_speedup'].value == 1.0
    assert metrics['planned_measured_speedup'].value == 1.0
    assert metrics['predicted_speedup_by_place'].value < 1.0


def test_benchmark_writes_autoregressive_once_and_each_block_length(tmp_path):
  lines = latency.benchmark(
      run=str(tmp_path / 'timed'),
      target=tiny.target(384),
      draft=tiny.draft(384),
      task=tiny.task(tmp_path / 'task', label_length=6),
      batch_sizes=(4,),
      block_lengths=(1, 2),
      repeats=3,
      draft_name='distilled',
  )
  assert results.read(tmp_path / 'timed' / 'results.jsonl') == lines
  assert [line['kind'] for line in lines] == ['latency'] * 3
  settings = [
      (line['draft'], line['decoding']['block_length']) for line in lines
  ]
  assert settings == [(None, None), ('distilled', 1), ('distilled', 2)]
  for line in lines:
    assert line['decoding']['batch_size'] == 4
    assert line['decoding']['max_new_tokens'] == 6
    for name, metric in line['metrics'].items():
      assert metric['value'] > 0 or name == 'planned_block_length'
  plain, *fast = (line['metrics'] for line in lines)
  assert set(plain) == {'tokens_per_second', 'compile_s'}
  assert plain['tokens_per_second']['count'] == 6  # a run beside each fast one
  for metrics in fast:
    assert set(metrics) == {
        'tokens_per_second',
        'compile_s',
        'cost_ratio',
        'verify_ratio',
        'block_efficiency',
        'predicted_speedup',
        'predicted_speedup_with_verify',
        'predicted_speedup_by_place',
        'planned_block_length',
        'planned_speedup',
        'planned_measured_speedup',
        'measured_speedup',
    }
    assert metrics['measured_speedup']['count'] == 3
    assert metrics['measured_speedup']['standard_error'] is not None


def test_a_profile_is_beside_the_fastest_block_length(tmp_path, capsys):
  _, *fast = latency.benchmark(
      run=str(tmp_path / 'timed'),
      target=tiny.target(384),
      draft=tiny.draft(384),
      task=tiny.task(tmp_path / 'task', label_length=32),
      batch_sizes=(2,),
      block_lengths=(1, 2),
      repeats=1,
      profile=True,
  )
  speedup = lambda line: line['metrics']['measured_speedup']['value']
  best, other = sorted(fast, key=speedup, reverse=True)
  assert not any(name.endswith('_ms') for name in other['metrics'])
  metrics = best['metrics']
  parts = [name for name in metrics if name.startswith('block_')]
  assert {'block_ms', 'block_target_read_ms', 'block_commit_ms'} <= set(parts)
  assert {'begin_target_ms', 'begin_draft_ms'} <= set(metrics)
  folder = tmp_path / 'timed' / 'profile' / 'batch_2_temperature_0'
  assert list(folder.rglob('*.xplane.pb'))
  shown = capsys.readouterr().err
  assert 'the block in the loop' in shown
  assert 'best measured' in shown


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'repeats': 0}, 'repeats is 0'),
        ({'examples': 0}, 'examples is 0'),
        ({'batch_sizes': ()}, 'give at least one of each'),
        ({'batch_sizes': (1, 0)}, 'batch_size is 0'),
        ({'temperatures': ()}, 'give at least one of each'),
        ({'block_lengths': ()}, 'give at least one of each'),
        ({'block_lengths': (0,)}, 'block_length is 0'),
        ({'max_new_tokens': 0}, 'max_new_tokens is 0'),
        ({'draft': 'no/such/folder'}, 'There is no folder'),
    ],
)
def test_benchmark_refuses_before_work_starts(tmp_path, changes, message):
  arguments = {
      'target': tiny.target(384),
      'draft': tiny.draft(384),
      'task': tiny.task(tmp_path / 'task'),
      **changes,
  }
  with pytest.raises(errors.UserError, match=message):
    latency.benchmark(run=str(tmp_path / 'timed'), **arguments)
  assert not (tmp_path / 'timed' / 'results.jsonl').exists()
