import json

import jax
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.training import schedules


def test_rates_are_those_of_t5x(shared):
  golden = json.loads((shared / 'golden/t5x/lr_schedules.json').read_text())
  assert len(golden) == 7
  for name, case in golden.items():
    factors = schedules.Factors(**case['kwargs'])
    rates = [float(factors(step)) for step in case['steps']]
    np.testing.assert_allclose(rates, case['values'], rtol=1e-6, err_msg=name)
    jitted = jax.jit(jax.vmap(factors))(np.array(case['steps']))
    # Compiled, sums that cancel are rounded otherwise.
    np.testing.assert_allclose(jitted, case['values'], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    'factors, rates',
    [
        ('constant', {0: 0.5, 9: 0.5}),
        ('constant * linear_warmup', {1: 0.05, 5: 0.25, 10: 0.5, 99: 0.5}),
        ('linear_decay', {5: 0.25, 10: 0.5, 30: 0.4}),
        ('constant * rsqrt_decay', {0: 0.5 * 10**-0.5, 10: 0.5 * 10**-0.5,
                                    100: 0.05}),
        ('constant * rsqrt_normalized_decay', {0: 0.5, 10: 0.5, 40: 0.25}),
        ('constant * decay_every', {19: 0.5, 20: 0.5 * 0.01,
                                    40: 0.5 * 0.01**2}),
        ('constant * cosine_decay', {10: 0.5, 60: 0.25, 110: 0.5}),
    ],
)  # fmt: skip
def test_rates_are_those_of_the_formulas(factors, rates):
  schedule = schedules.Factors(
      factors=factors,
      base_learning_rate=0.5,
      warmup_steps=10,
      decay_factor=0.01,
      steps_per_decay=20,
      steps_per_cycle=100,
  )
  for step, rate in rates.items():
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-5), step


def test_steps_are_counted_from_the_offset():
  factors = schedules.Factors(factors='constant * rsqrt_decay', warmup_steps=4)
  later = schedules.Factors(
      factors='constant*rsqrt_decay', warmup_steps=4, step_offset=100
  )
  for step in (0, 3, 9):
    assert later(100 + step) == factors(step)
  assert later(0) == factors(0)


def test_the_rate_has_a_floor():
  factors = schedules.Factors(min_learning_rate=0.25)
  assert factors(0) == 0.25


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'factors': 'constant * sqrt'}, "Factors.factors has 'sqrt'; known"),
        ({'factors': ''}, "Factors.factors has ''"),
        ({'base_learning_rate': float('inf')}, 'base_learning_rate is inf'),
        ({'base_learning_rate': 0.0}, 'base_learning_rate is 0.0'),
        ({'warmup_steps': 0}, 'warmup_steps is 0; it must be at least 1'),
        ({'steps_per_decay': 0}, 'steps_per_decay is 0'),
        ({'steps_per_cycle': -1}, 'steps_per_cycle is -1'),
    ],
)
def test_bad_settings_are_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    schedules.Factors(**changes)
