"""A draft that shares its target's encoder is measured like any other."""

import dataclasses

import numpy as np
import pytest

from distillspec_jax.evaluation import acceptance
from distillspec_jax.evaluation import exactness
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.evaluation.speed import latency
from distillspec_jax.sampling import decoding as decoding_lib
from tests import tiny

DECODING = decoding_lib.Decoding(
    temperature=1.0, block_length=2, max_new_tokens=6
)


def drafts(vocabulary_size=tiny.V):
  """One draft twice: with the target's encoder as its own, and sharing it."""
  target = tiny.target(vocabulary_size)
  own = tiny.draft(vocabulary_size)
  own = dataclasses.replace(
      own, params={**own.params, 'encoder': target.params['encoder']}
  )
  # The encoder reads words by the target's embedding.
  own.params['token_embedder'] = target.params['token_embedder']
  shared = tiny.sharing(tiny.Model(own.transformer, own.params))
  shared = tiny.loaded(shared, 'folder/shared')
  return own, shared


def test_acceptance_is_that_of_the_same_draft_with_an_encoder():
  target, batches = tiny.target(), [tiny.batch(16)]
  own, shared = (
      acceptance.measure(target, draft, batches, DECODING, seed=3)
      for draft in drafts()
  )
  assert set(own) == set(shared)
  assert 0.05 < own['acceptance_rate'].value < 0.95
  for name, metric in own.items():
    assert shared[name].value == pytest.approx(metric.value, rel=1e-4), name


def test_the_law_of_its_samples_is_checked():
  batch = tiny.batch(64)
  fit = exactness.uniforms(
      tiny.target(),
      drafts()[1],
      batch.inputs,
      batch.input_segments,
      DECODING,
      0,
  )
  assert fit.count > 100 and fit.p_value > 1e-6  # chance of a false alarm


def test_it_is_evaluated_with_its_own_answers(tmp_path):
  task = tiny.task(tmp_path / 'task', metrics=('exact_match',))
  target = tiny.with_vocabulary(tiny.target(384), task.vocabulary)
  own, shared = (
      acceptance.evaluate(
          run=str(tmp_path / draft.name),
          target=target,
          draft=tiny.with_vocabulary(draft, task.vocabulary),
          task=task,
          examples=4,
          temperatures=(0.0,),
          block_lengths=(2,),
      )
      for draft in drafts(384)
  )
  assert [line['kind'] for line in shared] == [
      'acceptance', 'task_quality', 'task_quality',
  ]  # fmt: skip
  assert [line['metrics'] for line in own[1:]] == [
      line['metrics'] for line in shared[1:]
  ]


def test_its_steps_and_decoding_are_timed(tmp_path):
  lines = latency.benchmark(
      run=str(tmp_path / 'timed'),
      target=tiny.target(384),
      draft=drafts(384)[1],
      task=tiny.task(tmp_path / 'task', label_length=6),
      batch_sizes=(2,),
      block_lengths=(2,),
      repeats=1,
  )
  assert lines[1]['metrics']['cost_ratio']['value'] > 0
  assert lines[1]['draft'] == 'shared'


def test_its_steps_are_those_of_decoding(loops):
  target, batch = tiny.target(), tiny.batch(2)
  for draft in drafts():
    inputs = costs.inputs(target, draft, batch.inputs, batch.input_segments)
    assert (inputs.encoded is None) == (draft.name != 'folder/shared')
    costs.step(draft, inputs, DECODING, tiny.V)
    costs.prefill(draft, inputs, DECODING)
  own, shared = (run(4)[1] for run in loops)
  np.testing.assert_array_equal(own, shared)
