"""The lines of the wall clock: which there are and how their numbers relate.

How fast anything is depends on the machine and is not tested.
"""

import itertools

import jax
import numpy as np
import pytest

from distillspec_jax.core import cost_model
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.distributed import locks
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.evaluation.speed import latency
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import verification
from tests import tiny

L = 8
EOS = 32  # a token that the target emits often
COSTS = costs.Costs(
    prefill=0.0,
    step=2.0,
    draft_prefill=0.0,
    draft_first=0.5,
    draft=0.5,
    verify={2: 3.0},
)
GREEDY = decoding_lib.Decoding(
    drafting=decoding_lib.Drafting(length=2), max_new_tokens=L
)


@pytest.fixture
def clock(monkeypatch):
  """A clock of which every reading is one second after the last."""
  seconds = itertools.count(0.0, 1.0)
  monkeypatch.setattr(latency.time, 'perf_counter', lambda: next(seconds))


def measure(
    batches, target=tiny.target, draft=tiny.draft, costs=COSTS, **changes
):
  """Metrics of autoregressive and of speculative decoding."""
  measured = latency.measure(
      target().model,
      draft().model,
      jax.device_put(batches),
      [GREEDY.replace(**changes)],
      costs,
      seed=0,
  )
  return measured.plain, measured.fast[0]


def batches(number=3):
  return [tiny.batch(3, seed=seed) for seed in range(number)]


def test_greedy_runs_emit_the_same_tokens(clock):
  plain, fast = measure(batches(), eos_ids=(EOS,))
  assert plain['compile_s'].value == fast['compile_s'].value == 1.0
  # Each run takes a second by this clock, so rates are tokens of a run.
  assert plain['tokens_per_second'] == fast['tokens_per_second']
  assert plain['tokens_per_second'].value < 3 * L
  assert fast['measured_speedup'] == (1.0, 0.0, 3, '1')


def test_predictions_are_the_cost_models(clock):
  _, fast = measure(batches())
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


def test_predictions_of_a_parallel_draft_are_those_of_one_step(clock):
  _, fast = measure(
      batches(1), draft=tiny.parallel_draft, parallel=True,
      costs=COSTS._replace(parallel={2: 0.7}),
  )  # fmt: skip
  tau = fast['block_efficiency'].value
  assert fast['cost_ratio'].value == 0.35
  assert fast['predicted_speedup'].value == tau / (0.35 + 1.0)
  assert fast['predicted_speedup_with_verify'].value == tau / (0.35 + 1.5)


def test_adaptive_length_has_no_prediction_and_no_plan(clock):
  _, fast = measure(batches(1), adaptive=adaptive_length.Confidence(0.4))
  assert set(fast) == {
      'tokens_per_second', 'compile_s', 'cost_ratio', 'verify_ratio',
      'block_efficiency', 'measured_speedup',
  }  # fmt: skip


def test_tokens_of_padding_rows_do_not_count(clock):
  plain, fast = measure([tiny.batch(3, empty=2)])
  assert plain['tokens_per_second'].value <= L
  assert fast['tokens_per_second'].value <= L
  assert fast['block_efficiency'].count == 1


def test_padding_of_the_larger_vocabulary_is_never_emitted(clock):
  """The target's logit of its row of padding is often the largest."""

  def larger():
    model = tiny.target(tiny.V + 1)
    params = jax.tree.map(np.array, model.model.params)
    params['decoder']['logits_dense']['kernel'][:, -1] *= 100
    return tiny.loaded(model.model.replace(params=params))

  # A row would end there, so that there would be fewer tokens.
  plain, fast = measure([tiny.batch(9)], target=larger, eos_ids=(tiny.V,))
  assert plain['tokens_per_second'].value == 9 * L
  assert fast['tokens_per_second'].value == 9 * L


def planned(verify_s):
  """The plan, and the metrics of each block length, with the clock's times."""
  lengths = (1, 2)
  measured = latency.measure(
      tiny.target().model,
      tiny.draft(scale=0.0).model,
      jax.device_put([tiny.batch(8)]),
      [GREEDY.replace(length=length, eos_ids=()) for length in lengths],
      COSTS._replace(verify=dict.fromkeys(lengths, verify_s)),
      seed=0,
  )
  return measured.plan, dict(zip(lengths, measured.fast))


def test_a_perfect_draft_is_planned_with_the_longest_block(clock):
  plan, fast = planned(verify_s=2.0)
  assert plan.block_length == 2
  # 8 tokens in 3 blocks of 3 s, against 8 steps of 2 s.
  assert plan.speedup == pytest.approx(16 / 9)
  for length, calls, block_s in ((1, 4, 2.5), (2, 3, 3.0)):
    metrics = fast[length]
    assert metrics['planned_block_length'].value == 2
    assert metrics['planned_speedup'].value == plan.speedup
    measured = fast[2]['measured_speedup']
    assert metrics['planned_measured_speedup'] == measured
    predicted = metrics['predicted_speedup_by_place'].value
    assert predicted == pytest.approx(16 / (calls * block_s))


def test_where_nothing_pays_the_plan_is_not_to_speculate(clock):
  plan, fast = planned(verify_s=20.0)
  assert plan.block_length is None
  for metrics in fast.values():
    assert metrics['planned_block_length'].value == 0
    assert metrics['planned_speedup'].value == 1.0
    assert metrics['planned_measured_speedup'].value == 1.0
    assert metrics['predicted_speedup_by_place'].value < 1.0


# `benchmark`: its lines.


def benchmark(tmp_path, label_length=6, **changes):
  arguments = {
      'run': str(tmp_path / 'timed'),
      'target': tiny.target(tiny.BYTES),
      'draft': tiny.draft(tiny.BYTES),
      'task': tiny.task(tmp_path / 'task', label_length=label_length),
      **changes,
  }
  return latency.benchmark(**arguments)


def block_lengths(*lengths):
  return decoding_lib.grid(temperatures=(0.0,), block_lengths=lengths)


def test_benchmark_writes_autoregressive_once_and_each_block_length(tmp_path):
  lines = benchmark(
      tmp_path,
      batch_sizes=(4,),
      decodings=block_lengths(1, 2),
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


def test_every_way_to_speculate_is_timed_in_one_call(tmp_path, monkeypatch):
  """Those that differ in block length alone share a plan and the costs."""
  timed = []

  def fake_costs(target, draft, prompt, decodings):
    timed.append(decodings)
    lengths = [decoding.drafting.length for decoding in decodings]
    return COSTS._replace(verify=dict.fromkeys(lengths, 3.0))

  monkeypatch.setattr(costs, 'measure', fake_costs)
  sampled = decoding_lib.Decoding(
      sampling=decoding_lib.Sampling(temperature=1.0),
      drafting=decoding_lib.Drafting(length=2),
  )
  ways = {
      'token': {},
      'block': {'verifier': verification.Block()},
      'paths': {'paths': 2},
      'lenient': {'verifier': verification.Lenient('linear', 0.5)},
      'typical': {'verifier': verification.Typical()},
      'adaptive': {'adaptive': adaptive_length.Confidence(0.4)},
  }
  decodings = [sampled.replace(**changes) for changes in ways.values()]
  shown = []
  lines = benchmark(
      tmp_path,
      batch_sizes=(2,),
      decodings=[*decodings, sampled.replace(length=1)],
      repeats=2,
      show=lambda *arguments: shown.append(arguments),
  )
  expected = [[each.replace(max_new_tokens=6)] for each in decodings]
  expected[0].append(expected[0][0].replace(length=1))
  assert timed == expected  # one group each; the first with two lengths
  plain = [line for line in lines if line['draft'] is None]
  fast = [line for line in lines if line['draft'] is not None]
  assert len(plain) == len(ways) and len(fast) == len(ways) + 1
  described = [
      decoding.describe(speculative=True, batch_size=2)
      for group in expected
      for decoding in group
  ]
  assert [line['decoding'] for line in fast] == described
  for line in fast:
    metrics = line['metrics']
    assert 1 <= metrics['block_efficiency']['value'] <= 3
    assert metrics['measured_speedup']['count'] == 2
    is_adaptive = line['decoding']['adaptive'] is not None
    assert ('planned_speedup' in metrics) == (not is_adaptive)
  ((title, measured),) = shown
  assert title == 'draft, tiny validation'
  assert [one.decodings for one in measured] == expected
  assert [one.plan is None for one in measured] == [
      name == 'adaptive' for name in ways
  ]


def test_a_profile_is_beside_the_fastest_block_length(tmp_path):
  shown = []
  _, *fast = benchmark(
      tmp_path,
      label_length=32,
      batch_sizes=(2,),
      decodings=block_lengths(1, 2),
      repeats=1,
      profile=True,
      show=lambda *arguments: shown.append(arguments),
  )
  speedup = lambda line: line['metrics']['measured_speedup']['value']
  best, other = sorted(fast, key=speedup, reverse=True)
  assert not any(name.endswith('_ms') for name in other['metrics'])
  metrics = best['metrics']
  parts = [name for name in metrics if name.startswith('block_')]
  assert {'block_ms', 'block_target_read_ms', 'block_commit_ms'} <= set(parts)
  assert {'prefill_target_ms', 'prefill_draft_ms'} <= set(metrics)
  (folder,) = (tmp_path / 'timed' / 'profile').iterdir()
  length = best['decoding']['block_length']
  assert folder.name == f'batch-2_greedy_block-length-{length}'
  assert list(folder.rglob('*.xplane.pb'))
  ((_, (one,)),) = shown
  block_s = one.breakdown.block_s
  assert metrics['block_ms']['value'] == pytest.approx(1e3 * block_s)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'repeats': 0}, 'repeats is 0'),
        ({'batch_sizes': ()}, r'batch_sizes is \(\); give a list of at least'),
        ({'batch_sizes': 8}, 'batch_sizes is 8; give a list of at least'),
        ({'batch_sizes': (1, 0)}, 'batch_size is 0'),
        ({'batch_sizes': (None,)}, 'batch_size is None; it must be a whole'),
        ({'decodings': ()}, r'decodings is \(\); give a list'),
        ({'decodings': [GREEDY.replace(length=9)]}, 'block_length is 9'),
        ({'draft': 'no/such/folder'}, 'There is no folder'),
    ],
)
def test_benchmark_refuses_before_work_starts(tmp_path, changes, message):
  with pytest.raises(errors.UserError, match=message):
    benchmark(tmp_path, **changes)
  assert not (tmp_path / 'timed' / 'results.jsonl').exists()


def test_the_folder_of_a_run_under_way_is_left_alone(tmp_path):
  task = tiny.task(tmp_path / 'task')
  with locks.held(tmp_path / 'run' / locks.FILE):
    with pytest.raises(errors.UserError, match='run is in use by process'):
      latency.benchmark(
          run=str(tmp_path / 'run'),
          target=tiny.target(tiny.BYTES),
          draft=tiny.draft(tiny.BYTES),
          task=task,
      )
