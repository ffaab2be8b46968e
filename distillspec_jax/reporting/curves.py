"""Training lines -> curves: one per run and metric, averaged over seeds.

A run is a folder; runs that differ in their seeds alone are one curve.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
import math
from typing import NamedTuple

from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import runs as runs_lib


class Curve(NamedTuple):
  """A training metric as a function of the step.

  Attributes:
    run: name of the run.
    points: step -> mean over seeds, in the order of steps; without an error
      where only one seed reached the step.
  """

  run: str
  points: dict[float, measurements.Value]


def curves(
    lines: Sequence[measurements.Line], metric: str, split: str = 'train'
) -> list[Curve]:
  """Curves of at least two points, in the order of first appearance."""
  names = runs_lib.names_of(lines)
  runs = collections.defaultdict(lambda: collections.defaultdict(dict))
  for line in lines:
    if line['split'] != split or metric not in line['metrics']:
      continue
    value = measurements.number(line['metrics'][metric]['value'])
    if math.isfinite(value):
      step, run = line['metrics']['step']['value'], runs_lib.run_of(line)
      value = measurements.Value(value, None, 1, 1)
      runs[names[run]][step][run[1]] = value
  return [
      Curve(
          run,
          {
              step: measurements.over_seeds(list(by_seed.values()))
              for step, by_seed in sorted(steps.items())
          },
      )
      for run, steps in runs.items()
      if len(steps) > 1
  ]
