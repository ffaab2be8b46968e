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
