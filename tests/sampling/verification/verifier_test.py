"""The steps that verifiers share, and verifiers by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import verification
from distillspec_jax.sampling.verification import verifier
from tests.sampling import enumeration

TEXTS = {
    'token': verification.Token(),
    'block': verification.Block(),
    'lenient(linear, 0.5)': verification.Lenient('linear', 0.5),
    'lenient(square, 0.25, relaxed)': verification.Lenient(
        'square', 0.25, 'relaxed'
    ),
    'typical': verification.Typical(),
    'typical(0.2)': verification.Typical(0.2),
    'typical(0.2, 4)': verification.Typical(0.2, 4.0),
    'typical(delta=4)': verification.Typical(delta=4.0),
    'simulated(0.7)': verification.Simulated(0.7),
    'simulated(1)': verification.Simulated(1.0),
}


# Shared steps.


def test_an_empty_residual_falls_back_to_the_target(monkeypatch):
  # Rounding alone can reject where p equals q; 1.0 stands for such a draw.
  monkeypatch.setattr(
      randomness, 'uniform', lambda keys, shape: jnp.ones((len(keys), *shape))
  )
  rows = 2_000
  p, _ = enumeration.small_tables(0)
  judge = jax.jit(lambda *args: verification.Token().sampled(*args))
  verdict = judge(
      randomness.row_keys(jax.random.key(0), rows),
      jnp.ones((rows, enumeration.G), jnp.int32),
      enumeration.logits_of(p[: enumeration.G], rows),
      enumeration.logits_of(p, rows),
  )
  assert (verdict.num_accepted == 0).all()
  observed = np.bincount(verdict.next_token, minlength=enumeration.V)
  fit = stats.chisquare(observed, rows * p[0])
  assert fit.pvalue > enumeration.FALSE_ALARM


def test_a_residual_is_a_distribution_that_q_has_left():
  p = jnp.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
  q = jnp.array([[0.1, 0.3, 0.6], [0.5, 0.3, 0.2], [0.0, 0.0, 0.0]])
  np.testing.assert_allclose(
      verifier.residual(p, q), [[1.0, 0.0, 0.0], p[1], p[2]], rtol=1e-6
  )


def test_a_prefix_ends_at_the_first_that_fails_and_where_drafting_ended():
  passes = jnp.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]], bool)
  np.testing.assert_array_equal(verifier.prefix_length(passes), [2, 0, 4])
  lengths = jnp.array([1, 3, 3])
  np.testing.assert_array_equal(
      verifier.prefix_length(passes, lengths), [1, 0, 3]
  )


def test_nothing_is_proposed_after_the_last_drafted_token():
  q = jnp.arange(12.0).reshape(2, 2, 3)
  position = jnp.array([1, 2])
  np.testing.assert_array_equal(
      verifier.proposal_at(q, position), [[3, 4, 5], [0, 0, 0]]
  )
  np.testing.assert_array_equal(
      verifier.proposal_at(q, position, jnp.array([1, 2])), np.zeros((2, 3))
  )


# By name.


@pytest.mark.parametrize('text', TEXTS)
def test_verifiers_are_parsed_and_describe_themselves(text):
  parsed = verification.parse(text)
  assert parsed == TEXTS[text] and type(parsed) is type(TEXTS[text])
  assert hash(parsed) == hash(TEXTS[text])
  assert parsed.describe() == text
  # They are settings, kept when others change, and told apart.
  decoding = decoding_lib.Decoding(verifier=parsed)
  again = decoding.replace(temperature=1.0)
  assert again.verifier == parsed and hash(again) != hash(decoding)
  described = decoding.describe(speculative=True, batch_size=1)
  assert described['verifier'] == text


def test_every_verifier_has_a_text_here_and_says_what_it_is():
  classes = {type(value) for value in TEXTS.values()}
  assert classes == {
      getattr(verification, name)
      for name in verification.__all__
      if name not in ('Verdict', 'Verifier', 'parse')
  }
  lossless = {verification.Token, verification.Block}
  assert {kind for kind in classes if kind.is_lossless} == lossless
  paths = {kind for kind in classes if kind.supports_paths}
  assert paths == {verification.Token}


def test_equal_numbers_of_several_types_are_one_verifier():
  one, two = verification.Simulated(1), verification.Simulated(np.float32(1))
  assert one == two and hash(one) == hash(two)
  assert one.describe() == two.describe() == 'simulated(1)'


@pytest.mark.parametrize(
    'text, message',
    [
        ('', "The verifier is ''; write NAME or NAME.VALUE, ....*block, len"),
        ('cubic', "There is no verifier called 'cubic'; use one of block, "),
        ('tokens', 'Did you mean token?'),
        ('lenient', "'lenient' has arguments that do not fit: .*'function'"),
        ('lenient(cubic, 0.5)', "Lenient.function is 'cubic'; it must be one"),
        ('lenient(linear, 0)', r'epsilon is 0; it must lie in \[1e-6, 1\]'),
        ('lenient(square, 1e-300)', 'Lenient.epsilon is 1e-300; it'),
        ('lenient(linear, 1.5)', r'epsilon is 1.5; .* \(1 is lossless\)'),
        ('lenient(linear, None)', 'Lenient.epsilon is None; it must lie in'),
        ('lenient(linear, x)', "Lenient.epsilon is 'x'"),
        ('lenient(linear, 0.5, draft)', "Lenient.residual is 'draft'; it must"),
        ('typical(0.0)', r'Typical.epsilon is 0.0; it must lie in \(0, 1\)'),
        ('typical(1.0)', 'Typical.epsilon is 1.0'),
        ('typical(True)', 'Typical.epsilon is True'),
        ('typical(0.1, -1.0)', r'Typical.delta is -1.0; it must lie in \(0, i'),
        ('typical(0.1, 0.2, 0.3)', 'has arguments that do not fit'),
        ('typical(sigma=3)', "do not fit: .* keyword argument 'sigma'"),
        ('simulated', "do not fit: .*missing .*'rate'"),
        ('simulated(1.5)', r'Simulated.rate is 1.5; it must lie in \[0, 1\]'),
        ("simulated('0.5')", "Simulated.rate is '0.5'"),
        ('simulated(0.5, 0.5)', 'has arguments that do not fit'),
        ('token(1)', "verifier 'token.1.' has arguments that do not fit"),
    ],
)
def test_texts_that_are_no_verifier_are_refused(text, message):
  with pytest.raises(errors.UserError, match=message):
    verification.parse(text)


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: verification.Typical(float('nan')), 'epsilon is nan'),
        (lambda: verification.Typical(0.1, float('nan')), 'delta is nan'),
        (
            lambda: verification.Lenient('linear', float('nan')),
            'epsilon is nan',
        ),
        (lambda: verification.Simulated(float('nan')), 'rate is nan'),
    ],
)
def test_values_that_are_not_numbers_are_refused(build, message):
  with pytest.raises(errors.UserError, match=message):
    build()


def test_what_does_not_implement_the_functions_is_told_so():

  @dataclasses.dataclass(frozen=True)
  class Nothing(verification.Verifier):
    pass

  with pytest.raises(NotImplementedError):
    Nothing().sampled(None, None, None, None)
  with pytest.raises(NotImplementedError):
    Nothing().greedy(None, None, None)
  assert Nothing().describe().endswith('verifier_test:Nothing')
