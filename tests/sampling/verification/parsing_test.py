"""The lossy rules by name, and what is refused."""

import dataclasses
import math

import pytest

from distillspec_jax.core import errors
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import lenient
from distillspec_jax.sampling import lossy
from distillspec_jax.sampling import simulated
from distillspec_jax.sampling import typical


@pytest.mark.parametrize(
    'given, rule, described',
    [
        (('typical',), typical.Typical(), ['typical', 0.09, 0.3]),
        (['typical', 0.2], typical.Typical(0.2), ['typical', 0.2, 0.3]),
        (
            ('typical', 0.2, 4.0),
            typical.Typical(0.2, 4.0),
            ['typical', 0.2, 4.0],
        ),
        (('simulated', 1), simulated.Simulated(1.0), ['simulated', 1.0]),
        (
            ('square', 0.5),
            lenient.Lenience('square', 0.5),
            ['square', 0.5, 'target'],
        ),
    ],
)
def test_rules_by_name(given, rule, described):
  parsed = lossy.parse(given)
  assert parsed == rule and type(parsed) is type(rule)
  assert lossy.describe(parsed) == described
  assert lossy.parse(described) == rule
  # Settings that are taken from others are parsed again.
  decoding = decoding_lib.Decoding(lenience=given)
  again = dataclasses.replace(decoding, temperature=1.0)
  assert again.lenience == rule and hash(again) != hash(decoding)
  out = decoding.describe(speculative=True, batch_size=1)
  assert out['lenience'] == described


@pytest.mark.parametrize(
    'given, message',
    [
        ((), r'function is \(\); it must be one of linear, .*simulated'),
        (0.5, 'function is 0.5; it must be one of'),
        ('cubic', "function is 'cubic'"),
        (('cubic', 0.5), "function is 'cubic'"),
        (('linear', None), 'epsilon is None; it must lie in'),
        (('linear', math.nan), 'epsilon is nan'),
        (('typical', 0.0), "lenience's epsilon is 0.0; it must be above 0"),
        (('typical', 1.0), 'epsilon is 1.0; .* below 1'),
        (('typical', 'x'), "epsilon is 'x'"),
        (('typical', True), 'epsilon is True'),
        (('typical', 0.1, -1.0), "lenience's delta is -1.0"),
        (('typical', 0.1, math.nan), 'delta is nan'),
        (('typical', 0.1, 0.2, 0.3), r"give \('typical', epsilon, delta\)"),
        (('simulated',), r"give \('simulated', rate\) with a rate in \[0, 1\]"),
        (('simulated', 1.5), r"lenience is \('simulated', 1.5\)"),
        (('simulated', '0.5'), r"give \('simulated', rate\)"),
        (('simulated', 0.5, 0.5), r"give \('simulated', rate\)"),
    ],
)
def test_what_is_no_rule_is_named(given, message):
  with pytest.raises(errors.UserError, match=message):
    lossy.parse(given)
