"""How long one step of a loop takes, without what comes before the loop.

A program that does few steps and one that does many take turns; the difference
of their times is that of the additional steps. Steps run inside one program, as
they do in decoding, so that the time of a call from the host is not included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import time
from typing import Any, TypeVar

import jax
import numpy as np

_LAPS = (7, 21, 63, 126)
_FEW_LAPS, _LONG_S = 3, 2.0  # enough for a slow step
_MAX_LAPS, _SHORT_S = 126, 0.2  # short programs, which are easily disturbed
_STEPS, _MAX_STEPS, _MEASURABLE_S = 16, 1 << 14, 0.02

Name = TypeVar('Name')


class Stopwatch:
  """Times of two programs that differ in how many steps they do.

  Both are called once at first, so that they are compiled.

  Attributes:
    laps: float[n, 2] seconds of either program.
  """

  def __init__(
      self, few: Callable[[], Any], many: Callable[[], Any], steps: int
  ):
    """Creates and warms up the stopwatch.

    Args:
      few: calls a program and returns its arrays.
      many: likewise.
      steps: how many more it does than `few`.
    """
    self.laps: list[tuple[float, float]] = []
    self._programs, self._steps = (few, many), steps
    for program in self._programs:
      jax.block_until_ready(program())

  def lap(self) -> float:
    """Seconds of a step, by one call of each program."""
    self.laps.append((_seconds(self._programs[0]), _seconds(self._programs[1])))
    few, many = self.laps[-1]
    return (many - few) / self._steps

  def seconds(self) -> float:
    """Seconds of a step, by the shortest times so far; may be 0 or negative."""
    few, many = np.min(self.laps, axis=0)
    return float(many - few) / self._steps


def once(call: Callable[[], Any]) -> Stopwatch:
  """A stopwatch of a program as such."""
  return Stopwatch(lambda: (), call, 1)


def loop(
    step: Callable[[Any, Any, jax.Array], Any], arguments: Any, carry: Any
) -> Stopwatch:
  """A stopwatch of `carry = step(arguments, carry, number)`.

  A step whose result does not depend on the carry would be computed once,
  before the loop, and seem to take no time. There are enough steps for the
  clock to measure them.

  Args:
    step: traced once; steps are numbered from 0.
    arguments: what steps read, such as parameters.
    carry: before the first step.
  """

  @jax.jit
  def run(arguments, carry, steps):
    one = lambda number, carry: step(arguments, carry, number)
    return jax.lax.fori_loop(0, steps, one, carry)

  arguments, carry = jax.device_put((arguments, carry))

  def program(steps):
    steps = jax.device_put(np.int32(steps))
    return lambda: run(arguments, carry, steps)

  many = _STEPS
  jax.block_until_ready(program(1)())  # compiles
  # The fastest of several: a busy machine slows down any one of them.
  while many < _MAX_STEPS and _MEASURABLE_S > min(
      _seconds(program(many)) for _ in range(5)
  ):
    many *= 4
  few = many // 4
  return Stopwatch(program(few), program(many), many - few)


def read(watches: Mapping[Name, Stopwatch]) -> dict[Name, float]:
  """Seconds of a step of each stopwatch; they take turns.

  Raises:
    RuntimeError: the clock measures no difference.
  """
  for laps in _LAPS:
    for _ in range(_MAX_LAPS):
      for watch in watches.values():
        if not _is_enough(watch, laps):
          watch.lap()
    unclear = [name for name, watch in watches.items() if watch.seconds() <= 0]
    if not unclear:
      return {name: watch.seconds() for name, watch in watches.items()}
  raise RuntimeError(
      f'Many steps take no longer than few: {unclear}. The machine is too busy'
      ' to time them; run again.'
  )


def _is_enough(watch: Stopwatch, laps: int) -> bool:
  """Whether a step has been timed long enough, or `laps` times and clearly."""
  number, spent = len(watch.laps), np.sum(watch.laps)
  if number >= _FEW_LAPS and spent > _LONG_S and watch.seconds() > 0:
    return True
  return number >= laps and (spent > _SHORT_S or number >= _MAX_LAPS)


def _seconds(program: Callable[[], Any]) -> float:
  began = time.perf_counter()
  jax.block_until_ready(program())
  return time.perf_counter() - began
