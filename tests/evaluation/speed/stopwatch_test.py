"""Times of steps, by a clock that is set by hand."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.evaluation.speed import stopwatch


@pytest.fixture
def clock(monkeypatch):
  """A clock whose time is set by what is timed."""
  now = types.SimpleNamespace(s=0.0)
  monkeypatch.setattr(stopwatch.time, 'perf_counter', lambda: now.s)
  return now


def takes(clock, *seconds):
  """A program that takes these times, the last of them from then on."""
  left = list(seconds)

  def run():
    clock.s += left.pop(0) if len(left) > 1 else left[0]
    return np.zeros(1)

  return run


def test_a_step_is_the_difference_over_the_steps(clock):
  # The first call of each compiles.
  watch = stopwatch.Stopwatch(
      takes(clock, 100.0, 12.0, 11.0), takes(clock, 100.0, 16.0, 19.0), 4
  )
  assert watch.lap() == 1.0
  assert watch.lap() == 2.0
  assert watch.seconds() == (16.0 - 11.0) / 4
  assert watch.laps == [(12.0, 16.0), (11.0, 19.0)]


def test_a_program_by_itself(clock):
  assert stopwatch.read({'it': stopwatch.once(takes(clock, 3.0))}) == {
      'it': 3.0
  }


def test_watches_take_turns_and_slow_ones_fewer(clock):
  watches = {
      name: stopwatch.Stopwatch(takes(clock, 0.0), takes(clock, seconds), 2)
      for name, seconds in (('slow', 1.0), ('fast', 0.1), ('short', 0.01))
  }
  found = stopwatch.read(watches)
  assert found == pytest.approx({'slow': 0.5, 'fast': 0.05, 'short': 0.005})
  laps = [len(watch.laps) for watch in watches.values()]
  assert laps[:2] == [3, 7] and laps[2] in (20, 21)


def test_noise_is_met_with_more_laps(clock):
  few = [9.0] * 11 + [1.0]  # too slow at first
  watch = stopwatch.Stopwatch(takes(clock, *few), takes(clock, 2.0), 1)
  assert stopwatch.read({'noisy': watch}) == {'noisy': 1.0}
  assert len(watch.laps) > 7


def test_a_clock_that_sees_nothing_is_an_error(clock):
  watch = stopwatch.once(takes(clock, 0.0))
  with pytest.raises(RuntimeError, match=r"\['stuck'\].* too busy"):
    stopwatch.read({'stuck': watch})


def test_a_loop_does_as_many_steps_as_the_clock_sees(clock, monkeypatch):
  programs = []
  monkeypatch.setattr(
      stopwatch, 'Stopwatch', lambda *args: programs.append(args)
  )
  monkeypatch.setattr(
      stopwatch.jax, 'block_until_ready', lambda out: takes(clock, out[1])()
  )

  def step(arguments, carry, number):
    total, seconds = carry
    return arguments * total + number, seconds + 1e-3

  stopwatch.loop(step, jnp.float32(1.0), (jnp.float32(5.0), jnp.float32(0.0)))
  ((few, many, steps),) = programs
  # A step takes a millisecond: 64 of them are seen, 16 are not.
  assert steps == 64 - 16
  assert few()[0] == 5 + sum(range(16))
  assert many()[0] == 5 + sum(range(64))
