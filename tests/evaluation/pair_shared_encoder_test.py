"""A draft that shares its target's encoder is measured like any other."""

import numpy as np
import pytest

from distillspec_jax.evaluation import acceptance
from distillspec_jax.evaluation import exactness
from distillspec_jax.evaluation.speed import costs
from distillspec_jax.evaluation.speed import latency
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import decoding as decoding_lib
from tests import tiny

DECODING = decoding_lib.Decoding(
    sampling=decoding_lib.Sampling(temperature=1.0),
    drafting=decoding_lib.Drafting(length=2),
    max_new_tokens=6,
)


def drafts(vocabulary_size=tiny.V):
  """One draft twice: with the target's encoder as its own, and sharing it."""
  target = tiny.target(vocabulary_size).model.params
  own = tiny.draft(vocabulary_size).model
  # The encoder reads words by the target's embedding.
  own = own.replace(
      params={
          **own.params,
          'encoder': target['encoder'],
          'token_embedder': target['token_embedder'],
      }
  )
  shared = tiny.sharing(own)
  return tiny.loaded(own, 'folder/own'), tiny.loaded(shared, 'folder/shared')


def test_acceptance_is_that_of_the_same_draft_with_an_encoder():
  target, batches = tiny.target(), [tiny.batch(16)]
  own, shared = (
      acceptance.measure(target, draft, batches, DECODING, seed=3)
      for draft in drafts()
  )
  assert set(own) == set(shared)
  assert 0.05 < own['expected_acceptance'].value < 0.95
  for name, metric in own.items():
    assert shared[name].value == pytest.approx(metric.value, rel=1e-4), name


def test_the_distribution_of_its_samples_is_checked():
  prompt = tiny.batch(64).prompt
  fit = exactness.uniforms(tiny.target(), drafts()[1], prompt, DECODING, 0)
  assert fit.count > 100 and fit.p_value > 1e-6  # chance of a false alarm


def test_it_is_evaluated_with_its_own_outputs(tmp_path):
  task = tiny.task(tmp_path / 'task', metrics=('exact_match',))
  target = tiny.with_vocabulary(tiny.target(tiny.BYTES), task.vocabulary)
  own, shared = (
      acceptance.evaluate(
          run=str(tmp_path / draft.name),
          target=target,
          draft=tiny.with_vocabulary(draft, task.vocabulary),
          task=task,
          examples=4,
          decodings=[DECODING.replace(temperature=0.0, max_new_tokens=None)],
      )
      for draft in drafts(tiny.BYTES)
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
      target=tiny.target(tiny.BYTES),
      draft=drafts(tiny.BYTES)[1],
      task=tiny.task(tmp_path / 'task', label_length=6),
      batch_sizes=(2,),
      decodings=[DECODING.replace(temperature=0.0)],
      repeats=1,
  )
  assert lines[1]['metrics']['cost_ratio']['value'] > 0
  assert lines[1]['draft'] == 'shared'


def test_its_steps_are_those_of_decoding(loops):
  target, batch = tiny.target().model, tiny.batch(2)
  for draft in drafts():
    prompt = model_lib.with_shared_encoding(batch.prompt, target, draft.model)
    assert (prompt.encoded is None) == (draft.name != 'folder/shared')
    costs.step(draft.model, prompt, DECODING, tiny.V)
    costs.prefill(draft.model, prompt, DECODING)
  own, shared = (run(4)[1] for run in loops)
  np.testing.assert_array_equal(own, shared)
