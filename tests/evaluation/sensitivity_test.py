"""What is promised of the chi-squared test holds in simulations of it."""

import numpy as np
import pytest
from scipy import stats

from distillspec_jax.core import errors
from distillspec_jax.evaluation import certificate
from distillspec_jax.evaluation import exactness
from distillspec_jax.evaluation import sensitivity
from distillspec_jax.sampling import decoding as decoding_lib

FALSE_ALARM = 1e-6
SHARE = 1e-6 / 17  # of each check of a certificate by default
# What is counted: outputs of the tiny pair.
SAMPLINGS = [certificate.PLAIN, certificate.WARPED]


def probabilities(sampling):
  decoding = exactness._of_tiny_pair(decoding_lib.Decoding(sampling=sampling))
  p = exactness._distribution(decoding)
  return p[p > 0.0] / p.sum()


def p_values(rng, samples, true, assumed, times):
  """P-values of so many experiments, by the true distribution."""
  counts = rng.multinomial(samples, true / true.sum(), size=times)
  expected = samples * assumed
  statistic = ((counts - expected) ** 2 / expected).sum(axis=1)
  return stats.chi2.sf(statistic, len(assumed) - 1)


def test_the_default_is_what_the_help_text_says():
  decoding = decoding_lib.Decoding(sampling=certificate.PLAIN)
  cells = exactness.num_outputs(decoding)
  assert cells == 121
  number = sensitivity.num_samples(0.01, cells, SHARE)
  assert 410_000 < number < 425_000
  of_pair = sensitivity.detectable_bias(1024 * 32, exactness._BINS, SHARE)
  assert of_pair == pytest.approx(0.03, abs=5e-4)


@pytest.mark.parametrize('bias', [0.003, 0.01, 0.1])
def test_samples_and_bias_are_inverse(bias):
  number = sensitivity.num_samples(bias, 121, SHARE)
  found = sensitivity.detectable_bias(number, 121, SHARE)
  assert found == pytest.approx(bias, rel=1e-3)


def test_one_cell_or_hardly_a_sample_shows_nothing():
  assert sensitivity.detectable_bias(10**6, 1, SHARE) == 1.0
  assert sensitivity.detectable_bias(10, 121, SHARE) == 1.0


@pytest.mark.parametrize('sampling', SAMPLINGS)
def test_right_samples_alarm_as_rarely_as_is_said(sampling):
  p = probabilities(sampling)
  times, level = 20_000, 1e-3
  found = p_values(np.random.default_rng(0), 20_000, p, p, times)
  assert (20_000 * p).min() > exactness._MIN_EXPECTED / 2
  alarms = (found < level).sum()
  low, high = stats.binom.interval(1 - FALSE_ALARM, times, level)
  assert low <= alarms <= high
  # Far in the tail, too: of so many, one in 500 such tests has one below.
  assert found.min() > 1e-7


def shifted(p, bias):
  """The bias that is hardest to see: every cell changes by the same share."""
  up = np.cumsum(p) <= 0.5
  return np.where(
      up, p * (1 + bias / p[up].sum()), p * (1 - bias / p[~up].sum())
  )


@pytest.mark.parametrize('bias', [0.01, 0.03])
def test_the_bias_that_is_hardest_to_see_is_seen(bias):
  p = np.full(100, 0.01)
  true = shifted(p, bias)
  assert 0.5 * np.abs(true - p).sum() == pytest.approx(bias)
  number = sensitivity.num_samples(bias, len(p), SHARE)
  rng = np.random.default_rng(1)
  seen = (p_values(rng, number, true, p, 2000) < SHARE).mean()
  # 0.99 within five standard errors.
  assert abs(seen - sensitivity.POWER) < 5 * np.sqrt(0.99 * 0.01 / 2000)
  # Half as many samples are not enough.
  seen = (p_values(rng, number // 2, true, p, 2000) < SHARE).mean()
  assert seen < 0.7


@pytest.mark.parametrize('bias', [0.01, 0.02])
def test_a_bias_of_the_tiny_pair_is_seen(bias):
  p = np.sort(probabilities(certificate.PLAIN))
  number = sensitivity.num_samples(bias, len(p), SHARE)
  rng = np.random.default_rng(2)
  seen = (p_values(rng, number, shifted(p, bias), p, 1000) < SHARE).mean()
  assert seen > 0.97


@pytest.mark.parametrize(
    'setting', [{'bias': 0.0}, {'bias': 1.0}, {'false_alarm': 0.0}]
)
def test_settings_out_of_range_are_refused(setting):
  with pytest.raises(errors.UserError, match=r'must lie in \(0, 1\)'):
    sensitivity.Sensitivity(**setting)
