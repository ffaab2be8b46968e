"""The certificate: what is checked, and that what is broken fails."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.data import vocabularies
from distillspec_jax.evaluation import certificate
from distillspec_jax.evaluation import exactness
from distillspec_jax.evaluation import sensitivity
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import verification
from distillspec_jax.sampling.verification import verifier
from tests import tiny

SAMPLED = decoding_lib.Decoding(
    sampling=decoding_lib.Sampling(temperature=1.0),
    drafting=decoding_lib.Drafting(length=3),
    max_new_tokens=8,
)


@pytest.fixture(name='pair', scope='module')
def _pair():
  target = tiny.model(seed=0, gain=2.0, num_decoder_layers=2)
  return tiny.loaded(target), tiny.loaded(tiny.model(seed=1, gain=2.0))


COARSE = sensitivity.Sensitivity(bias=0.1)


def checks(pair, decoding=SAMPLED, inputs=4, samples=512):
  """Name -> check."""
  prompt = certificate.random_prompt(*pair, inputs, 6, seed=0)
  return {
      check.name: check
      for check in certificate.checks(
          *pair, prompt, decoding, samples=samples, sensitivity=COARSE
      )
  }


def only(monkeypatch, *names):
  """Fewer rules, for what is not about all of them."""
  rules = {name: certificate.RULES[name] for name in names}
  monkeypatch.setattr(certificate, 'RULES', rules)


def test_all_checks_of_a_pair_hold(pair, monkeypatch):
  only(
      monkeypatch, 'token verification', 'two paths',
      'block verification, length by entropy',
  )  # fmt: skip
  passed = checks(pair)
  # Two caches; greedy, three loops in two dtypes; two distributions per rule,
  # and those of a tiny pair warped where lengths are fixed.
  assert len(passed) == 2 + 3 * 2 + 2 * 3 + 2
  for check in passed.values():
    assert check.holds, check
    assert check.metrics['holds'].value == 1.0
  shares = [
      check.evidence
      for check in passed.values()
      if '(fails below 1.2e-07); detects a bias of' in check.evidence
  ]
  assert len(shares) == certificate.num_statistical(SAMPLED) == 8
  for check in passed.values():
    if 'tiny pair' in check.name:
      assert check.metrics['detectable_bias'].value <= COARSE.bias
  adaptive = {
      type(check.decoding.drafting.adaptive) for check in passed.values()
  }
  # The threshold of the rule's length is the draft's own.
  assert adaptive == {type(None), adaptive_length.Entropy}


def test_rules_that_are_greedy_the_same_loop_are_compared_once():
  def names(**own):
    decodings = {
        name: SAMPLED.replace(**changes)
        for name, changes in certificate.RULES.items()
        if 'adaptive' not in changes
    }
    entropy = adaptive_length.Entropy(1.0)
    decodings['length'] = SAMPLED.replace(adaptive=entropy)
    decodings['own'] = SAMPLED.replace(**own)
    return certificate._greedy_rules(decodings)

  loops = ['token verification', 'two paths', 'length']
  assert names() == loops
  assert names(verifier=verification.Block()) == loops
  assert names(adaptive=adaptive_length.Confidence(0.5)) == loops
  # How a verifier of one's own judges greedy tokens is not known.
  assert names(verifier=ResamplesTarget()) == [*loops, 'own']
  assert names(paths=3) == [*loops, 'own']


@pytest.fixture(name='parallel_pair', scope='module')
def _parallel_pair(pair):
  target, draft = pair
  model = tiny.changed(draft.model, draft.model.params, mask_token=2)
  return target, tiny.loaded(model)


def test_a_parallel_draft_is_certified_as_one(parallel_pair, monkeypatch):
  only(monkeypatch, 'token verification')
  decoding = SAMPLED.replace(parallel=True)
  passed = checks(parallel_pair, decoding)
  assert len(passed) == 2 + 3 * 2 + 2 * 3 + 2
  assert all(check.holds for check in passed.values())
  for name in ('a tiny', 'this'):
    check = passed[f'distribution of {name} pair, parallel draft']
    assert check.decoding.drafting.parallel
  assert not passed[
      'distribution of this pair, token verification'
  ].decoding.drafting.parallel


def test_parallel_rules_are_for_parallel_drafts(pair, parallel_pair):
  decoding = SAMPLED.replace(parallel=True)
  of_both = certificate.RULES | certificate.PARALLEL_RULES
  assert certificate.rules(SAMPLED, pair[1]) == certificate.RULES
  assert certificate.rules(decoding, parallel_pair[1]) == of_both
  own = {'verifier': verification.Block(), 'parallel': True}
  assert certificate.rules(decoding.replace(**own), parallel_pair[1]) == {
      **of_both, 'verifier block, parallel': own
  }  # fmt: skip
  with pytest.raises(errors.UserError, match='model has none'):
    checks(pair, decoding)


def test_the_users_own_warping_is_certified_beside_the_plain_one(
    pair, monkeypatch
):
  only(monkeypatch, 'token verification')
  own = SAMPLED.replace(temperature=0.7, top_k=5)
  passed = checks(pair, own)
  for name in ('', ', temperature 0.7, top_k 5'):
    check = passed[f'distribution of this pair, token verification{name}']
    assert check.holds and 'below 2e-07' in check.evidence
  assert certificate.num_statistical(own) == 5
  top_k = [check.decoding.sampling.top_k for check in passed.values()]
  assert [top_k.count(k) for k in (0, 3, 5)] == [2, 1, 6]


# The decoding's own way to speculate.


@dataclasses.dataclass(frozen=True)
class MyToken(verification.Token):
  """A verifier of one's own, lossless as the one that it is made of."""


@dataclasses.dataclass(frozen=True)
class ResamplesTarget(verification.Token):
  """It says that it is lossless; its corrections come from p."""

  def sampled(self, keys, drafted, q_logits, p_logits, lengths=None):
    verdict = super().sampled(keys, drafted, q_logits, p_logits, lengths)
    p = jnp.exp(verifier.at(p_logits, verdict.num_accepted))
    return verdict._replace(next_token=verifier.sample_next(keys, p))


@pytest.mark.parametrize(
    'changes, name',
    [
        ({'verifier': MyToken()}, f'verifier {MyToken().describe()}'),
        ({'paths': 3}, 'paths 3'),
        (
            {'adaptive': adaptive_length.Confidence(0.25)},
            'adaptive confidence(0.25)',
        ),
        (
            {
                'verifier': verification.Block(),
                'adaptive': adaptive_length.Entropy(2.0),
            },
            'verifier block, adaptive entropy(2)',
        ),
    ],
)
def test_a_way_of_ones_own_is_added_to_the_rules(changes, name):
  rules = certificate.rules(SAMPLED.replace(**changes))
  assert rules == {**certificate.RULES, name: changes}


@pytest.mark.parametrize(
    'changes', [{}, {'verifier': verification.Block()}, {'paths': 2}]
)
def test_a_way_that_is_among_the_rules_is_not_added_again(changes):
  assert certificate.rules(SAMPLED.replace(**changes)) == certificate.RULES


@pytest.mark.parametrize(
    'own, holds', [(MyToken(), True), (ResamplesTarget(), False)]
)
def test_a_verifier_of_ones_own_is_certified(pair, monkeypatch, own, holds):
  only(monkeypatch, 'token verification')
  verdicts = {
      name: check.holds
      for name, check in checks(pair, SAMPLED.replace(verifier=own)).items()
  }
  name = f'verifier {own.describe()}'
  expected = {
      f'distribution of {check}': holds
      for check in (
          f'a tiny pair, {name}',
          f'a tiny pair, {name}, temperature 0.7, top_k 3, top_p 0.85',
          f'this pair, {name}',
      )
  }
  # Greedy it is right, and the built-in rule is in any case.
  assert {n: v for n, v in verdicts.items() if n in expected} == expected
  others = [v for n, v in verdicts.items() if n not in expected]
  assert len(others) == 2 + 2 * 2 + 3 and all(others)


@pytest.mark.parametrize(
    'lossy, name',
    [
        (verification.Lenient('linear', 0.5), r'lenient\(linear, 0.5\)'),
        (verification.Typical(), 'typical'),
        (verification.Simulated(1.0), r'simulated\(1\)'),
    ],
)
def test_a_lossy_verifier_is_refused(pair, lossy, name):
  with pytest.raises(
      errors.UserError, match=f'The verifier {name} is lossy: .* nothing to'
  ):
    checks(pair, SAMPLED.replace(verifier=lossy))


@pytest.mark.parametrize(
    'decoding, options, message',
    [
        ({'temperature': 0.0}, {}, 'temperature is 0; .* greater than 0'),
        ({'length': 9}, {}, 'block_length is 9'),
        ({}, {'samples': 0}, 'samples is 0'),
    ],
)
def test_settings_out_of_range_are_refused(decoding, options, message):
  options = {'samples': 8, **options}
  with pytest.raises(errors.UserError, match=message):
    certificate.check_settings(SAMPLED.replace(**decoding), **options)


def test_a_cache_that_is_wrong_is_seen(pair, monkeypatch):
  extend = model_lib.Model.extend

  def wrong(self, *args, **kwargs):
    hidden, state = extend(self, *args, **kwargs)
    return 1.01 * hidden, state

  only(monkeypatch, 'token verification')
  monkeypatch.setattr(model_lib.Model, 'extend', wrong)
  # Another shape than anything that was compiled before.
  found = checks(pair, inputs=3, samples=3)
  for who in ('target', 'draft'):
    assert not found[f'cache of the {who} in float32'].holds


def test_the_cache_of_an_int8_draft_is_not_compared(pair, monkeypatch):
  pytest.importorskip('qwix', reason='distillspec_jax[int8] is not installed')
  only(monkeypatch, 'block verification')
  target, draft = (model.model for model in pair)
  pair = (
      tiny.loaded(tiny.quantized(target, 'int8_weight_only')),
      tiny.loaded(tiny.quantized(draft)),
  )
  passed = checks(pair, SAMPLED.replace(verifier=verification.Block()))
  caches = [name for name in passed if name.startswith('cache')]
  assert caches == ['cache of the target in float32']
  assert len(passed) == 6 and all(check.holds for check in passed.values())


@pytest.mark.parametrize('name', ['top_k', 'top_p'])
def test_each_warping_of_a_tiny_pair_excludes_outputs(name):
  number = lambda sampling: exactness.num_outputs(
      decoding_lib.Decoding(sampling=sampling)
  )
  plain = getattr(certificate.PLAIN, name)
  without = dataclasses.replace(certificate.WARPED, **{name: plain})
  assert number(certificate.WARPED) < number(without)


def test_tokens_that_the_draft_lacks_are_no_secret(pair):
  draft = tiny.loaded(tiny.model(tiny.V - 2, seed=1, gain=2.0))
  prompt = certificate.random_prompt(pair[0], draft, 4, 6, seed=0)
  every = certificate.checks(pair[0], draft, prompt, SAMPLED)
  check = next(check for check in every if check.name == 'vocabulary')
  assert not check.holds and 'has 2 fewer tokens' in check.evidence
  assert check.metrics['unreachable'].value > 0.01
  # Padding, to which the target gives hardly any probability, may be cut.
  padding = certificate._vocabulary_check(np.full(28, 1e-5), 4, SAMPLED)
  assert padding.holds and padding.metrics['unreachable'].value < 1e-3


# Prompts.


def test_random_prompts_are_of_tokens_that_both_models_know():
  pair = tiny.target(), tiny.target(tiny.V - 2)
  prompt = certificate.random_prompt(*pair, 50, 6, seed=0)
  assert prompt.tokens.shape == (50, 6) and (prompt.segments == 1).all()
  assert (prompt.tokens.min(), prompt.tokens.max()) == (2, tiny.V - 3)
  other = certificate.random_prompt(*pair, 50, 6, seed=1)
  assert not np.array_equal(prompt.tokens, other.tokens)


@pytest.mark.parametrize(
    'count, length, message',
    [(0, 6, 'inputs is 0'), (4, 0, 'input_length is 0')],
)
def test_an_empty_prompt_is_refused(count, length, message):
  with pytest.raises(errors.UserError, match=message):
    certificate.random_prompt(tiny.target(), tiny.target(), count, length, 0)


def test_texts_are_read_with_the_targets_vocabulary():
  target = tiny.with_vocabulary(
      tiny.target(tiny.BYTES), vocabularies.load('bytes')
  )
  prompt = certificate.text_prompt(target, ['ab', 'abc'])
  assert isinstance(prompt, types.Prompt)
  np.testing.assert_array_equal(prompt.segments.sum(axis=1), [3, 4])
  assert prompt.tokens[1, 3] == 1
