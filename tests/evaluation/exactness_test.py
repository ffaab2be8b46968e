"""The measurements hold for the sampler as it is, and for no broken one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.evaluation import certificate
from distillspec_jax.evaluation import exactness
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import verification
from distillspec_jax.sampling.verification import multi_path
from distillspec_jax.sampling.verification import verifier
from tests import tiny

FALSE_ALARM = 1e-6
SAMPLED = decoding_lib.Decoding(
    sampling=decoding_lib.Sampling(temperature=1.0),
    drafting=decoding_lib.Drafting(length=3),
    max_new_tokens=8,
)


@pytest.fixture(name='pair', scope='module')
def _pair():
  target = tiny.model(seed=0, gain=2.0, num_decoder_layers=2)
  draft = tiny.model(seed=1, gain=2.0, mask_token=2)
  return tiny.loaded(target), tiny.loaded(draft)


def prompt(rows):
  tokens = np.random.default_rng(0).integers(2, 40, (4, 6))
  tokens = jnp.asarray(np.tile(tokens, (rows // 4, 1)), jnp.int32)
  return types.Prompt(tokens, jnp.ones_like(tokens))


def p_value(pair, decoding, rows=1024, seed=0):
  return exactness.uniforms(*pair, prompt(rows), decoding, seed).p_value


def enumerated_p_value(decoding, samples=8_192):
  return exactness.enumerated(decoding, samples, 0).p_value


# Of this pair's draft, at half of its positions.
THRESHOLDS = {'Confidence': 0.30, 'Entropy': 2.38}


RULES = certificate.RULES | certificate.PARALLEL_RULES


def of_rule(rule, **changes):
  changes = RULES[rule] | changes
  adaptive = changes.get('adaptive')
  if adaptive is not None:
    changes['adaptive'] = adaptive(THRESHOLDS[adaptive.__name__])
  return SAMPLED.replace(**changes)


def test_thresholds_are_of_the_draft_itself(pair):
  measured = exactness.incremental(pair[1], prompt(256), SAMPLED, 0)
  assert measured.confidence == pytest.approx(THRESHOLDS['Confidence'], rel=0.1)
  assert measured.entropy == pytest.approx(THRESHOLDS['Entropy'], rel=0.1)
  assert measured.difference < 1e-4


@pytest.mark.parametrize(
    'rule, warping',
    [
        *((rule, {}) for rule in RULES),
        ('token verification', {'top_k': 5}),
        ('block verification', {'top_p': 0.8}),
        ('two paths', {'top_k': 5}),
        ('length by entropy', {'top_k': 5, 'temperature': 0.7}),
        ('block verification, length by confidence', {'top_p': 0.8}),
    ],
)
def test_tokens_of_a_pair_have_the_targets_distribution(pair, rule, warping):
  decoding = of_rule(rule, **warping)
  if decoding.drafting.adaptive is not None:
    samples = exactness.speculate(*pair, prompt(1024), decoding, 0)
    counts = samples.statistics
    share = counts.drafted.sum() / counts.blocks.sum() / 3
    assert 0.4 < share < 0.95  # some blocks are short, and some are not
  fit = exactness.uniforms(*pair, prompt(1024), decoding, seed=0)
  assert fit.count > 4000
  assert fit.p_value > FALSE_ALARM


def test_a_draft_that_is_the_target_has_its_distribution(pair):
  assert p_value((pair[0], pair[0]), SAMPLED, 512, seed=1) > FALSE_ALARM


@pytest.mark.parametrize(
    'lossy',
    [verification.Lenient('linear', 0.5), verification.Typical()],
    ids=lambda lossy: lossy.describe(),
)
def test_tokens_of_lossy_verifiers_do_not_have_it(pair, lossy):
  assert p_value(pair, SAMPLED.replace(verifier=lossy)) < FALSE_ALARM


# Broken verifiers.


@dataclasses.dataclass(frozen=True)
class ResamplesTarget(verification.Token):
  """The correction comes from p and not from the residual."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    logits = verifier.at(p_logits, verdict.num_accepted)
    again = randomness.categorical(randomness.streams(keys, 'next'), logits)
    return verdict._replace(next_token=again)


@dataclasses.dataclass(frozen=True)
class AcceptsTooMuch(verification.Token):

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    more = jnp.minimum(verdict.num_accepted + 1, drafted.shape[1])
    return verdict._replace(num_accepted=more)


@dataclasses.dataclass(frozen=True)
class BlockResamplesTarget(verification.Block):

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    logits = verifier.at(p_logits, verdict.num_accepted)
    again = randomness.categorical(randomness.streams(keys, 'next'), logits)
    return verdict._replace(next_token=again)


@dataclasses.dataclass(frozen=True)
class BlockForgetsLength(verification.Block):
  """Accepts what it would of a block of full length, up to its length."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    inputs = keys, drafted, q_logits, p_logits
    verdict = super().sampled(*inputs, lengths)
    full = super().sampled(*inputs).num_accepted
    return verdict._replace(num_accepted=jnp.minimum(full, lengths))


@dataclasses.dataclass(frozen=True)
class Unchanged(verification.Token):
  """Token verification by another name: what it calls is traced anew."""


@pytest.mark.parametrize('broken', [ResamplesTarget(), AcceptsTooMuch()])
def test_a_broken_verifier_is_seen_in_both_distributions(pair, broken):
  decoding = SAMPLED.replace(verifier=broken)
  assert p_value(pair, decoding) < FALSE_ALARM
  assert enumerated_p_value(decoding) < FALSE_ALARM


@dataclasses.dataclass(frozen=True)
class LogitsOfAnotherPosition(verification.Token):
  """Judges each token by the distribution of the one before it."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    q_logits = jnp.roll(q_logits, 1, axis=1)
    return super().sampled(keys, drafted, q_logits, p_logits, lengths)


def test_logits_of_another_position_of_a_parallel_block_are_seen(pair):
  decoding = SAMPLED.replace(parallel=True, verifier=LogitsOfAnotherPosition())
  assert p_value(pair, decoding) < FALSE_ALARM
  assert enumerated_p_value(decoding) < FALSE_ALARM


def test_a_broken_block_verifier_is_seen(pair):
  decoding = SAMPLED.replace(verifier=BlockResamplesTarget())
  assert p_value(pair, decoding) < FALSE_ALARM


@pytest.fixture(name='near', scope='module')
def _near(pair):
  """A pair that agrees so often that blocks of full length are accepted."""
  noise = lambda x: x + 0.01 * jnp.std(x) * jax.random.normal(
      jax.random.key(x.size), x.shape
  )
  model = pair[0].model
  params = jax.tree.map(noise, model.params)
  return pair[0], tiny.loaded(model.replace(params=params))


def test_token_verification_that_forgets_the_length_is_seen(near, monkeypatch):
  decoding = of_rule('length by confidence')
  assert p_value(near, decoding) > FALSE_ALARM
  # What was not drafted has a q that is not zero.
  proposal_at = verifier.proposal_at
  monkeypatch.setattr(
      verifier, 'proposal_at', lambda q, at, lengths=None: proposal_at(q, at)
  )
  decoding = decoding.replace(verifier=Unchanged())
  assert enumerated_p_value(decoding) < FALSE_ALARM
  assert p_value(near, decoding) < FALSE_ALARM


def test_block_verification_that_forgets_the_length_is_seen(near):
  decoding = of_rule('block verification, length by entropy')
  assert p_value(near, decoding) > FALSE_ALARM
  # The tokens of the pair do not show so small a mistake.
  decoding = decoding.replace(verifier=BlockForgetsLength())
  assert enumerated_p_value(decoding) < FALSE_ALARM


def test_paths_that_are_continued_when_dead_are_seen(pair, monkeypatch):
  decoding = SAMPLED.replace(paths=2, verifier=Unchanged())
  monkeypatch.setattr(
      multi_path,
      'survivors',
      lambda alive, drafted, token, passed: alive & passed[:, None],
  )
  assert p_value(pair, decoding) < FALSE_ALARM
  assert enumerated_p_value(decoding) < FALSE_ALARM


# Faults that move about one percent of the probability.


@dataclasses.dataclass(frozen=True)
class BlockForgetsWeight(verification.Block):
  """The correction comes from max(p - q, 0), whatever was accepted before."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    at = verdict.num_accepted
    rest = verifier.residual(
        verifier.at(jax.nn.softmax(p_logits), at),
        verifier.proposal_at(jax.nn.softmax(q_logits), at, lengths),
    )
    return verdict._replace(next_token=verifier.sample_next(keys, rest))


# A third of what a certificate draws.
SMALL_BIAS = 2 * 65_536


def test_three_percent_of_q_in_the_residual_are_seen(monkeypatch):
  residual = verifier.residual
  monkeypatch.setattr(verifier, 'residual', lambda p, q: residual(p, 0.97 * q))
  decoding = SAMPLED.replace(verifier=Unchanged())
  assert enumerated_p_value(decoding, SMALL_BIAS) < FALSE_ALARM


def test_two_percent_too_much_acceptance_are_seen(monkeypatch):
  uniforms = verifier.uniforms
  monkeypatch.setattr(
      verifier, 'uniforms', lambda *args: uniforms(*args) / 1.02
  )
  decoding = SAMPLED.replace(verifier=Unchanged())
  assert enumerated_p_value(decoding, SMALL_BIAS) < FALSE_ALARM


def test_a_block_rule_without_the_weight_is_seen():
  decoding = SAMPLED.replace(verifier=BlockForgetsWeight())
  assert enumerated_p_value(decoding, SMALL_BIAS) < FALSE_ALARM


@pytest.mark.parametrize(
    'rule, sampling',
    [
        ('token verification', certificate.PLAIN),
        ('two paths', certificate.WARPED),
        ('parallel draft', certificate.WARPED),
    ],
)
def test_right_samplers_are_not_suspected(rule, sampling):
  decoding = of_rule(rule).replace(sampling=sampling)
  fit = exactness.enumerated(decoding, SMALL_BIAS, seed=1)
  assert fit.count == SMALL_BIAS and fit.p_value > FALSE_ALARM
  assert fit.cells == exactness.num_outputs(decoding) > 30


def test_samples_are_drawn_anew_in_every_batch():
  decoding = of_rule('token verification')
  one, two = (
      exactness.enumerated(decoding, n * 65_536, seed=1).p_value for n in (1, 2)
  )
  # Counts that are only doubled would double the statistic.
  cells = exactness.num_outputs(decoding) - 1
  doubled = stats.chi2.sf(2 * stats.chi2.isf(one, cells), cells)
  assert two != pytest.approx(doubled, rel=1e-3)


def test_outputs_that_are_too_rare_share_a_cell():
  p = np.array([0.5, 0.3, 0.1999, 0.00005, 0.00005, 0.0])
  counts = np.array([5000, 3000, 1999, 1, 0, 0])
  fit = exactness._fit(counts, p)
  assert (fit.count, fit.cells) == (10_000, 3) and fit.p_value > 0.9
  counts[5] = 1  # what cannot be
  assert exactness._fit(counts, p).p_value == 0.0
  assert exactness._fit(np.array([9, 0]), np.array([1.0, 0.0])).p_value == 1.0


# Tokens that the draft does not have.


def test_tokens_that_are_never_emitted_are_missed(pair):
  draft = tiny.loaded(tiny.model(tiny.V // 2, seed=1, gain=2.0))
  many = prompt(1024)
  many = many._replace(tokens=many.tokens % (tiny.V // 2))
  fit = exactness.uniforms(pair[0], draft, many, SAMPLED, seed=0)
  assert fit.p_value < FALSE_ALARM
  few = types.Prompt(*(x[:8] for x in many[:2]))
  greedy = exactness.greedy(pair[0], draft, few, SAMPLED)
  assert greedy.different > 0 and not greedy.are_ties
  mean = exactness.incremental(pair[0], few, SAMPLED, 0).mean
  assert mean.shape == (tiny.V,) and mean.sum() == pytest.approx(1.0)


# Greedy.


def test_greedy_rows_are_the_same(pair):
  greedy = exactness.greedy(*pair, prompt(8), SAMPLED)
  assert greedy.rows == 8 and greedy.different == 0 and greedy.are_ties
  assert 0.0 < greedy.rounding < 1e-3


@dataclasses.dataclass(frozen=True)
class SecondBest(verification.Token):

  def greedy(self, keys, drafted, p_logits, lengths=None):
    verdict = super().greedy(keys, drafted, p_logits, lengths)
    order = jnp.argsort(p_logits, axis=-1)[..., -2].astype(jnp.int32)
    second = verifier.at(order, verdict.num_accepted)
    return verdict._replace(next_token=second)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_broken_greedy_verifier_is_no_tie(pair, dtype):
  models = [exactness.compute_in(model, dtype) for model in pair]
  decoding = SAMPLED.replace(verifier=SecondBest())
  greedy = exactness.greedy(*models, prompt(8), decoding)
  assert greedy.different == 8
  assert not greedy.are_ties


def test_ties_in_bfloat16_are_recognised():
  # Two tokens with one vector: whichever is first in the logits is a tie.
  assert exactness.Greedy(9, 2, margin=0.05, rounding=0.03).are_ties
  assert not exactness.Greedy(9, 2, margin=0.07, rounding=0.03).are_ties


def test_an_int8_target_has_ties(pair):
  pytest.importorskip('qwix', reason='distillspec_jax[int8] is not installed')
  target = tiny.loaded(tiny.quantized(pair[0].model))
  greedy = exactness.greedy(target, pair[1], prompt(8), SAMPLED)
  assert greedy.rounding > 1e-3 and greedy.are_ties
