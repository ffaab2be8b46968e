"""Acceptance and block efficiency against the sampler's own counts."""

import jax
import numpy as np
import pytest

from distillspec_jax.core import cost_model
from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.core import results
from distillspec_jax.data import vocabularies
from distillspec_jax.evaluation import acceptance
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from tests import tiny

L = 20  # not a multiple of the positions that are worked on together
ROWS = 256
SIGMAS = 4.9  # a two-sided false alarm of 1e-6
DECODER_ONLY = {'num_encoder_layers': 0}


def settings(**changes):
  return decoding_lib.Decoding(
      **{
          'temperature': 1.0,
          'block_length': 3,
          'max_new_tokens': L,
          **changes,
      }
  )


GREEDY = settings(temperature=0.0, block_length=L)


def sample(decoding, changes, seed=3, empty=0):
  """What `measure` samples with this seed."""
  target, draft = tiny.target(**changes), tiny.draft(**changes)
  batch = tiny.batch(ROWS, empty)
  return speculative.generate(
      target.transformer,
      target.params,
      draft.transformer,
      draft.params,
      batch.inputs,
      batch.input_segments,
      randomness.row_keys(jax.random.key(seed), ROWS),
      decoding,
  )


def distance(changes, judged, **warping):
  """How far acceptance is from accepted / judged tokens, and what is allowed.

  With blocks as long as the output every token is judged, so that both are
  averages over the same tokens. Their difference is a martingale, whose
  variance is at most rate (1 - rate) / tokens.
  """
  decoding = settings(block_length=L, **warping)
  counts = jax.device_get(sample(decoding, changes).statistics)
  tokens = counts.emitted.sum()
  assert counts.reached_at.sum() == tokens
  counted = counts.accepted.sum() / tokens
  metrics = acceptance.measure(
      tiny.target(**changes), judged, [tiny.batch(ROWS)], decoding, seed=3
  )
  allowed = SIGMAS * np.sqrt(counted * (1 - counted) / tokens)
  return abs(metrics['acceptance_rate'].value - counted), allowed


@pytest.mark.parametrize(
    'changes, warping',
    [({}, {}), (DECODER_ONLY, {'temperature': 0.7, 'top_k': 5})],
)
def test_expected_acceptance_is_what_is_accepted(changes, warping):
  found, allowed = distance(changes, tiny.draft(**changes), **warping)
  assert found < allowed


def test_acceptance_of_a_slightly_better_draft_is_caught():
  found, allowed = distance({}, tiny.draft(scale=0.2))
  assert found > allowed


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_acceptance_of_a_draft_of_some_tokens_is_what_is_accepted(temperature):
  decoding = settings(block_length=L, temperature=temperature)
  metrics = acceptance.measure(
      tiny.target(), tiny.trimmed_draft(), [tiny.batch(ROWS)], decoding, seed=3
  )
  batch = tiny.batch(ROWS)
  samples = pair_lib.answer(
      tiny.target(),
      tiny.trimmed_draft(),
      batch.inputs,
      batch.input_segments,
      randomness.row_keys(jax.random.key(3), ROWS),
      decoding,
  )
  counts = jax.device_get(samples.statistics)
  reached, passed = counts.reached_at.sum(), counts.accepted.sum()
  rate = passed / reached
  assert 0.05 < rate < 0.9
  found = metrics['acceptance_rate'].value
  if temperature == 0.0:
    assert found == pytest.approx(rate)
  else:
    assert abs(found - rate) < SIGMAS * np.sqrt(rate * (1 - rate) / reached)


def test_greedy_acceptance_is_exactly_what_is_accepted():
  counts = jax.device_get(sample(GREEDY, {}).statistics)
  metrics = acceptance.measure(
      tiny.target(), tiny.draft(), [tiny.batch(ROWS)], GREEDY, seed=3
  )
  counted = counts.accepted.sum() / counts.emitted.sum()
  assert 0.05 < counted < 0.95
  assert metrics['acceptance_rate'].value == pytest.approx(counted)


def test_counts_are_the_samplers():
  counts = jax.device_get(sample(settings(), {}).statistics)
  metrics = acceptance.measure(
      tiny.target(), tiny.draft(), [tiny.batch(ROWS)], settings(), seed=3
  )
  assert set(metrics) == {
      'acceptance_rate',
      'block_efficiency',
      'predicted_block_efficiency',
      'tokens',
      'acceptance_at_1',
      'acceptance_at_2',
      'acceptance_at_3',
  }
  assert all(metric.count == ROWS for metric in metrics.values())
  assert all(metric.standard_error > 0 for metric in metrics.values())
  assert metrics['tokens'].value == counts.emitted.mean()
  assert metrics['block_efficiency'].value == pytest.approx(
      counts.emitted.sum() / counts.blocks.sum()
  )
  for place in range(3):
    assert metrics[f'acceptance_at_{place + 1}'].value == pytest.approx(
        counts.accepted_at[:, place].sum() / counts.reached_at[:, place].sum()
    )
  rate = metrics['acceptance_rate'].value
  predicted = cost_model.predicted_block_efficiency(rate, 3)
  assert metrics['predicted_block_efficiency'].value == predicted


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_draft_that_is_the_target_is_always_accepted(temperature):
  decoding = settings() if temperature else GREEDY
  metrics = acceptance.measure(
      tiny.target(), tiny.target(), [tiny.batch(ROWS)], decoding, seed=0
  )
  assert metrics['acceptance_rate'].value == pytest.approx(1.0, abs=1e-5)
  assert metrics['acceptance_rate'].value <= 1.0
  # The sampler's two ways to a distribution differ by rounding.
  assert metrics['acceptance_at_1'].value == pytest.approx(1.0, abs=1e-2)
  assert metrics['predicted_block_efficiency'].value == pytest.approx(
      decoding.block_length + 1, abs=1e-2
  )


def test_padding_rows_do_not_count():
  real = ROWS - 100
  counts = jax.device_get(sample(settings(), {}, empty=100).statistics)
  assert counts.emitted[real:].any()  # they are decoded all the same
  metrics = acceptance.measure(
      tiny.target(),
      tiny.draft(),
      [tiny.batch(ROWS, empty=100)],
      settings(),
      seed=3,
  )
  assert all(metric.count == real for metric in metrics.values())
  assert metrics['tokens'].value == counts.emitted[:real].mean()
  assert metrics['block_efficiency'].value == pytest.approx(
      counts.emitted[:real].sum() / counts.blocks[:real].sum()
  )


def test_the_batch_size_changes_nothing():
  whole = tiny.batch(ROWS, empty=100)
  middle = ROWS // 2
  halves = [
      jax.tree.map(lambda x, at=at: x[at], whole)
      for at in (slice(0, middle), slice(middle, ROWS))
  ]
  found, expected = (
      acceptance.measure(
          tiny.target(), tiny.draft(), batches, settings(), seed=3
      )
      for batches in (halves, [whole])
  )
  assert found.keys() == expected.keys()
  for name, metric in found.items():
    assert metric.count == expected[name].count
    assert metric.value == pytest.approx(expected[name].value, rel=1e-5)


def test_one_example_has_no_standard_error():
  batch = tiny.batch(ROWS, empty=ROWS - 1)
  metrics = acceptance.measure(
      tiny.target(), tiny.draft(), [batch], settings(), seed=0
  )
  assert all(metric.standard_error is None for metric in metrics.values())


@pytest.mark.parametrize('batches', [[], [tiny.batch(ROWS, empty=ROWS)]])
def test_no_example_is_an_error(batches):
  with pytest.raises(errors.UserError, match='no example to measure'):
    acceptance.measure(tiny.target(), tiny.draft(), batches, settings(), seed=0)


def byte_pair():
  vocabulary = vocabularies.load('bytes')
  return [
      tiny.with_vocabulary(model(384), vocabulary)
      for model in (tiny.target, tiny.draft)
  ]


def test_evaluate_writes_acceptance_and_quality(tmp_path):
  target, draft = byte_pair()
  lines = acceptance.evaluate(
      run=str(tmp_path / 'measured'),
      target=target,
      draft=draft,
      task=tiny.task(
          tmp_path / 'task', label_length=8, metrics=('exact_match',)
      ),
      examples=5,
      batch_size=4,
      temperatures=(1.0,),
      block_lengths=(2,),
      seed=7,
  )
  assert results.read(tmp_path / 'measured' / 'results.jsonl') == lines
  first, *quality = lines
  assert first['kind'] == 'acceptance'
  assert first['decoding']['temperature'] == 1.0
  assert first['decoding']['block_length'] == 2
  assert first['decoding']['max_new_tokens'] == 8
  assert first['metrics']['acceptance_rate']['count'] == 5
  for line, who in zip(quality, ('target', 'draft'), strict=True):
    assert line['kind'] == 'task_quality'
    assert line['decoding']['model'] == who
    assert line['decoding']['temperature'] == 0.0
    assert line['metrics']['exact_match']['count'] == 5
  for line in lines:
    assert (line['run'], line['draft']) == ('measured', 'draft')
    assert (line['task'], line['split']) == ('tiny', 'validation')
    assert line['provenance']['seed'] == 7


def test_evaluate_measures_every_setting(tmp_path, monkeypatch):
  def count(target, draft, batches, decoding, seed):
    assert sum(len(batch.inputs) for batch in batches) == 6
    ones = np.ones((6, decoding.block_length))
    names = ('expected', 'emitted', 'blocks', 'reached_at', 'accepted_at')
    return {n: ones if n.endswith('at') else ones[:, 0] for n in names}

  monkeypatch.setattr(acceptance, 'count', count)
  target, draft = byte_pair()
  lines = acceptance.evaluate(
      run=str(tmp_path / 'measured'),
      target=target,
      draft=draft,
      task=tiny.task(tmp_path / 'task'),
      batch_size=2,
      temperatures=(0.0, 1.0),
      block_lengths=(3, 5),
      top_k=9,
      top_p=0.5,
      draft_name='distilled',
  )
  measured = [
      (line['decoding']['temperature'], line['decoding']['block_length'])
      for line in lines
  ]
  assert measured == [(0.0, 3), (0.0, 5), (1.0, 3), (1.0, 5)]
  for line in lines:
    assert (line['kind'], line['draft']) == ('acceptance', 'distilled')
    assert line['decoding']['top_k'] == 9
    assert line['decoding']['top_p'] == 0.5


def rules(tmp_path, draft, **changes):
  """Lines of both rules of verification."""
  return acceptance.evaluate(
      run=str(tmp_path / 'measured'),
      target=tiny.target(384),
      draft=draft,
      task=tiny.task(tmp_path / 'task', label_length=L),
      block_lengths=(4,),
      verifications=('token', 'block'),
      **changes,
  )


def test_rules_of_verification_are_compared_on_the_same_inputs(tmp_path):
  task = {'temperatures': (0.0, 1.0), 'examples': 6}
  lines = rules(tmp_path, tiny.draft(384, scale=0.1), **task)
  settings = [
      (line['decoding']['temperature'], line['decoding']['verification'])
      for line in lines
  ]
  # Greedy, the two are one.
  assert settings == [(0.0, 'token'), (1.0, 'token'), (1.0, 'block')]
  greedy, token, block = (line['metrics'] for line in lines)
  assert 'block_efficiency_gain' not in greedy
  assert 'block_efficiency_gain' not in token
  gain = block['block_efficiency_gain']
  assert gain['unit'] == 'tokens/block' and gain['count'] == 6
  assert gain['standard_error'] > 0
  difference = [one['block_efficiency']['value'] for one in (block, token)]
  assert gain['value'] == pytest.approx(difference[0] - difference[1])


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'verifications': ()}, 'give at least one of each'),
        ({'verifications': ('tree',)}, "verification is 'tree'"),
        ({'temperatures': ()}, 'give at least one of each'),
        ({'block_lengths': ()}, 'give at least one of each'),
        ({'temperatures': (-1.0,)}, 'temperature is -1.0'),
        ({'block_lengths': (13,)}, 'block_length is 13'),
        ({'max_new_tokens': 0}, 'max_new_tokens is 0'),
        ({'examples': 0}, 'examples is 0'),
        ({'batch_size': 0}, 'batch_size is 0'),
        ({'split': 'nowhere'}, "no split 'nowhere'"),
        ({'target': 'no/such/folder'}, 'There is no folder'),
    ],
)
def test_evaluate_refuses_before_work_starts(tmp_path, changes, message):
  target, draft = byte_pair()
  arguments = {
      'target': target,
      'draft': draft,
      'task': tiny.task(tmp_path / 'task'),
      **changes,
  }
  with pytest.raises(errors.UserError, match=message):
    acceptance.evaluate(run=str(tmp_path / 'measured'), **arguments)
  assert not (tmp_path / 'measured' / 'results.jsonl').exists()


def test_evaluate_refuses_a_folder_that_is_a_file(tmp_path):
  target, draft = byte_pair()
  (tmp_path / 'measured').write_text('')
  with pytest.raises(errors.UserError, match='Nothing can be written'):
    acceptance.evaluate(
        run=str(tmp_path / 'measured'),
        target=target,
        draft=draft,
        task=tiny.task(tmp_path / 'task'),
    )
