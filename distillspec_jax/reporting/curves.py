"""Training lines -> curves: one per run and metric, averaged over seeds."""

from __future__ import annotations

import collections
from collections.abc import Iterable
import math
from typing import NamedTuple

from distillspec_jax.reporting import measurements


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
    lines: Iterable[measurements.Line], metric: str, split: str = 'train'
) -> list[Curve]:
  """Curves of at least two points, in the order of first appearance."""
  runs = collections.defaultdict(lambda: collections.defaultdict(dict))
  for line in lines:
    if line['split'] != split or metric not in line['metrics']:
      continue
    value = line['metrics'][metric]['value']
    if math.isfinite(value):
      step = line['metrics']['step']['value']
      seed = line['provenance']['seed']
      runs[_name(line)][step][seed] = measurements.Value(value, None, 1, 1)
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


def distillations(lines: Iterable[measurements.Line]) -> set[str]:
  """Names of the runs that learned from a target."""
  return {_name(line) for line in lines if line['target']}


def _name(line: measurements.Line) -> str:
  # A folder's name has '_' where the draft's name has a blank.
  return line['run'].replace('_', ' ')
