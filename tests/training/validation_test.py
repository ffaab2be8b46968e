"""Scores of a validation against the models' own predictions and counts."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from distillspec_jax.core import randomness
from distillspec_jax.losses import divergences
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import verification
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import validation
from tests import tiny

BATCHES = [tiny.batch(6, empty=2), tiny.batch(6, seed=1)]
DECODING = decoding_lib.Decoding(
    drafting=decoding_lib.Drafting(length=2), max_new_tokens=9
)


def logits(model, batch):
  tokens = model_lib.shift_right(batch.labels, batch.segments)
  return jax.jit(model_lib.Model.logits)(
      model, batch.prompt, tokens, batch.segments
  )


@pytest.mark.parametrize(
    'method, name',
    [
        (method_lib.Method(z_loss=0.1), 'cross_entropy'),
        (method_lib.Method(divergence='jsd', fixed_fraction=0.0), 'loss'),
    ],
)
def test_the_loss_is_of_the_labels_that_count(method, name):
  target, model = tiny.target().model, tiny.draft().model
  losses, counts = [], []
  for batch in BATCHES:
    log_probs = np.asarray(jax.nn.log_softmax(logits(model, batch)))
    losses_of_rows = -np.take_along_axis(
        log_probs, batch.labels[..., None], -1
    )[..., 0]
    if name == 'loss':
      losses_of_rows = divergences.jsd(logits(target, batch), log_probs)
    losses.append(np.where(batch.mask, losses_of_rows, 0.0).sum(1))
    counts.append(batch.mask.sum(1))
  counts, losses = np.concatenate(counts), np.concatenate(losses)[:]
  score = validation.loss(method, target, model, BATCHES)
  assert score.value == pytest.approx(losses.sum() / counts.sum(), rel=1e-5)
  assert (score.name, score.sign) == (name, -1)  # less is better
  # Example by example, without the rows that only fill up a batch.
  assert score.counts == tuple(counts[counts > 0])
  np.testing.assert_allclose(score.totals, losses[counts > 0], rtol=1e-4)
  first = validation.loss(method, target, model, BATCHES, examples=5)
  assert first.totals == score.totals[:5]


@pytest.mark.parametrize(
    'changes',
    [{}, {'temperature': 1.0, 'verifier': verification.Lenient('linear', 0.5)}],
    ids=['greedy', 'lenient'],
)
def test_block_efficiency_is_the_samplers_over_real_rows(changes):
  decoding = DECODING.replace(**changes)
  target, draft = tiny.target().model, tiny.draft().model
  emitted, blocks = [], []
  for start, batch, real in zip((0, 6), BATCHES, (4, 6)):
    # No two examples share random numbers.
    keys = randomness.row_keys(jax.random.key(0), start + np.arange(6))
    samples = speculative.generate(target, draft, batch.prompt, keys, decoding)
    emitted += samples.statistics.emitted[:real].tolist()
    blocks += samples.statistics.blocks[:real].tolist()
  score = validation.block_efficiency(target, draft, BATCHES, decoding)
  assert 1.0 < score.value < 3.0
  assert (score.totals, score.counts) == (tuple(emitted), tuple(blocks))
  assert score.value == pytest.approx(sum(emitted) / sum(blocks))
  assert (score.name, score.sign) == ('block_efficiency', 1)


def score(*totals, sign=1):
  """Of examples that are counted ten times each."""
  counts = (10.0,) * len(totals)
  return validation.Score('x', 'nats', sign, totals, counts)


FIRST = score(20, 24, 18, 30)
BETTER = score(30, 34, 28, 41)
WITHIN = score(25, 39, 28, 40)  # of BETTER: -0.025 with an error of 0.26
WORSE = score(27, 31, 26, 38)  # -0.275, and 0.025: each of them is worse


def kept(*scores, keep='best'):
  selection = validation.Selection(keep)
  for step, each in enumerate(scores):
    selection.takes(step, each)
  return selection.step


@pytest.mark.parametrize(
    'scores, step',
    [
        ((FIRST, BETTER), 1),
        ((FIRST, FIRST, FIRST), 2),  # a tie
        ((BETTER, FIRST), 0),
        ((FIRST, BETTER, WORSE), 1),
        ((FIRST, BETTER, WITHIN), 2),
        ((FIRST, BETTER, WITHIN, WORSE), 2),
    ],
)
def test_the_latest_that_is_not_clearly_worse_is_kept(scores, step):
  assert kept(*scores) == step
  negative = [
      dataclasses.replace(s, totals=tuple(-x for x in s.totals), sign=-1)
      for s in scores
  ]
  assert kept(*negative) == step
  assert kept(*scores, keep='last') == len(scores) - 1


def test_small_losses_do_not_add_up():
  # Each is within the noise of the one before it, but not of the first.
  falling = [score(30 - i, 30 - 1.2 * i, 30 - 0.1 * i) for i in range(9)]
  for one, next_one in zip(falling, falling[1:]):
    gain, error = next_one.gain_over(one)
    assert -0.1 < gain < 0
  assert kept(*falling) < 3


def test_differences_are_paired():
  gain, error = BETTER.gain_over(FIRST)
  assert gain == pytest.approx(1.025)
  # The examples differ by far more than the gains on them.
  assert error == pytest.approx(np.std([10, 10, 10, 11], ddof=1) / 20)
  assert error < BETTER.estimate().standard_error / 5


def test_a_selection_survives_a_checkpoint():
  before = validation.Selection()
  for step, each in enumerate((FIRST, BETTER)):
    before.takes(step, each)
  after = validation.Selection()
  after.restore(json.loads(json.dumps(before.to_dict())))
  assert after == before
  assert [x.takes(2, WORSE) for x in (before, after)] == [False, False]


def test_what_is_kept_is_told_and_an_untrained_model_is_warned_of():
  selection = validation.Selection()
  selection.takes(0, BETTER)
  selection.takes(6, FIRST)
  told = selection.describe('run', 'block efficiency, greedy', 6)
  assert told.startswith('WARNING: run: best/ is step 0 of 6, chosen by block')
  assert 'UNTRAINED' in told and "keep = 'last'" in told
  selection.takes(9, BETTER)
  assert selection.describe('run', 'loss', 9) == (
      'run: best/ is step 9 of 9, chosen by loss, on validation: 3.325'
  )
  last = validation.Selection('last')
  last.takes(0, BETTER)
  last.takes(6, FIRST)
  assert last.describe('run', 'loss', 6) == (
      'run: best/ is step 6 of 6, the last one'
  )
