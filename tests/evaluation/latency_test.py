"""The lines of the wall clock: which there are and how their numbers relate.

How fast anything is depends on the machine and is not tested.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.evaluation import cost_model
from distillspec_jax.evaluation import latency
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import decoding as decoding_lib
from tests.evaluation import tiny

L = 8
EOS = 39  # a token that the target says often
COSTS = latency.Costs(draft=0.25, verify={2: 1.5})


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


def test_step_time_is_the_difference_of_many_and_few(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(latency.time, 'perf_counter', lambda: now[0])

  def steps(*args, encoded):
    now[0] += 10.0 + 0.5 * int(args[-1])  # ten seconds before the first step
    return np.zeros(1)

  monkeypatch.setattr(latency, '_steps', steps)
  batch = tiny.batch(2)
  assert latency.step_time(tiny.target(), batch, 1, 64) == 0.5
  assert latency.step_time(tiny.target(), batch, 1, 1) == 0.5


def test_a_clock_that_sees_nothing_is_an_error(monkeypatch):
  monkeypatch.setattr(latency.time, 'perf_counter', lambda: 0.0)
  monkeypatch.setattr(latency, '_steps', lambda *args, encoded: np.zeros(1))
  with pytest.raises(RuntimeError, match='too busy to time them'):
    latency.step_time(tiny.target(), tiny.batch(2), 1, 8)


def test_steps_are_those_of_autoregressive_decoding():
  model, batch = tiny.target(), tiny.batch(2)
  read = (model.transformer, model.params, batch.inputs, batch.input_segments)
  expected = autoregressive.generate(
      *read,
      randomness.row_keys(jax.random.key(0), 2),
      decoding_lib.Decoding(max_new_tokens=L, eos_ids=(-1,)),
  )
  found = latency._steps(*read, 1, L + 1, np.int32(L))
  np.testing.assert_array_equal(found[:, 0], expected.tokens[:, -1])


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
    for metric in line['metrics'].values():
      assert metric['value'] > 0
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
        'measured_speedup',
    }
    assert metrics['measured_speedup']['count'] == 3
    assert metrics['measured_speedup']['standard_error'] is not None


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
