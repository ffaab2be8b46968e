"""How small a bias a chi-squared test sees, and how many samples that takes.

N samples are counted in k cells that have probabilities p if all is right. If
they have probabilities r instead, Pearson's statistic is, for large N,
noncentral chi-squared with k - 1 degrees of freedom and noncentrality

  N sum_i (r_i - p_i)^2 / p_i  >=  4 N b^2,   b = 1/2 sum_i |r_i - p_i|

by the Cauchy-Schwarz inequality, as sum_i p_i = 1. So whatever a bias looks
like, it is seen at least as often as one of noncentrality 4 N b^2: what is
stated here is a guarantee, and most biases of that size are seen with fewer
samples. b is the total variation, the probability that is moved to other cells.
"""

from __future__ import annotations

import dataclasses
import math

from distillspec_jax.core import check

POWER = 0.99  # chance that a bias of the stated size is seen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
  """What a certificate promises to see, and how rarely it errs.

  Attributes:
    bias: share of the probability of a tiny pair's outputs that, moved to other
      outputs, is seen in 99 of 100 certificates; 0.01 takes about 420,000
      outputs for each check, in proportion to 1 / bias^2.
    false_alarm: chance that the certificate fails although all is right; each
      of the statistical checks gets an equal share of it.
  """

  bias: float = 0.01
  false_alarm: float = 1e-6

  def __post_init__(self):
    check.in_interval('(0, 1)', bias=self.bias, false_alarm=self.false_alarm)


DEFAULT = Sensitivity()


def num_samples(bias: float, cells: int, false_alarm: float) -> int:
  """Samples that show a total variation of `bias` with probability `POWER`."""
  return math.ceil(_noncentrality(cells, false_alarm) / (4.0 * bias**2))


def detectable_bias(samples: int, cells: int, false_alarm: float) -> float:
  """The smallest total variation that is seen with probability `POWER`."""
  if cells < 2:
    return 1.0
  return min(
      math.sqrt(_noncentrality(cells, false_alarm) / (4.0 * samples)), 1.0
  )


def _noncentrality(cells: int, false_alarm: float) -> float:
  """At which the test's p-value is below `false_alarm` in `POWER` of cases."""
  # Slow to import, and the command line needs only the settings above.
  from scipy import special

  critical = special.chdtri(cells - 1, false_alarm)
  return float(special.chndtrinc(critical, cells - 1, 1.0 - POWER))
