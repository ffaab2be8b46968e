"""Steps that would be timed, to look at instead."""

import jax
import jax.numpy as jnp
import pytest

from distillspec_jax.evaluation.speed import stopwatch


@pytest.fixture
def loops(monkeypatch):
  """The loops that would be timed, as functions: steps -> last carry."""
  runs = []

  def loop(step, arguments, carry):
    step = jax.jit(step)

    def run(number):
      now = carry
      for i in range(number):
        now = step(arguments, now, jnp.int32(i))
      return now

    runs.append(run)

  monkeypatch.setattr(stopwatch, 'loop', loop)
  return runs
