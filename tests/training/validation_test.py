"""Scores of a validation against the models' own predictions and counts."""

import jax
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from distillspec_jax.training import validation
from tests import tiny

BATCHES = [tiny.batch(6, empty=2), tiny.batch(6, seed=1)]
DECODING = decoding_lib.Decoding(
    drafting=decoding_lib.Drafting(length=2), max_new_tokens=9
)


def test_cross_entropy_is_of_the_labels_that_count():
  model = tiny.target().model
  losses = []
  for batch in BATCHES:
    tokens = model_lib.shift_right(batch.labels, batch.segments)
    logits = jax.jit(model_lib.Model.logits)(
        model, batch.prompt, tokens, batch.segments
    )
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    own = np.take_along_axis(log_probs, batch.labels[..., None], -1)[..., 0]
    losses.append(-own[batch.mask])
  score = validation.cross_entropy(model, BATCHES)
  assert score.value == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)
  assert score.score == -score.value  # less is better
  assert (score.name, score.examples) == ('cross_entropy', 10)


@pytest.mark.parametrize(
    'changes',
    [{}, {'temperature': 1.0, 'verifier': verification.Lenient('linear', 0.5)}],
    ids=['greedy', 'lenient'],
)
def test_block_efficiency_is_the_samplers_over_real_rows(changes):
  decoding = DECODING.replace(**changes)
  target, draft = tiny.target().model, tiny.draft().model
  emitted = blocks = 0
  for batch, real in zip(BATCHES, (4, 6)):
    keys = randomness.row_keys(jax.random.key(0), 6)
    samples = speculative.generate(target, draft, batch.prompt, keys, decoding)
    emitted += int(samples.statistics.emitted[:real].sum())
    blocks += int(samples.statistics.blocks[:real].sum())
  score = validation.block_efficiency(target, draft, BATCHES, decoding)
  assert 1.0 < score.value < 3.0
  assert score.value == score.score == pytest.approx(emitted / blocks)
  assert (score.name, score.examples) == ('block_efficiency', 10)
