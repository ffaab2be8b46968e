"""Steps that are to be timed, to look at instead."""

import jax
import jax.numpy as jnp
import pytest

from distillspec_jax.evaluation.speed import stopwatch


@pytest.fixture
def loops(monkeypatch):
  """The loops that were to be timed, as functions: steps -> last carry."""
  found = []

  def loop(step, arguments, carry):
    step = jax.jit(step)

    def run(number):
      now = carry
      for i in range(number):
        now = step(arguments, now, jnp.int32(i))
      return now

    found.append(run)

  monkeypatch.setattr(stopwatch, 'loop', loop)
  return found
