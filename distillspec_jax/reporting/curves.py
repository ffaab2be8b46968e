"""Lines of training -> curves: one a run and metric, averaged over seeds."""

from __future__ import annotations

import collections
from collections.abc import Iterable
import math
from typing import NamedTuple

from distillspec_jax.reporting import rows as rows_lib


class Curve(NamedTuple):
  """A training metric against steps.

  Attributes:
    run: its name.
    points: (step, mean over seeds, standard error over seeds), by step; the
      error is 0 where one seed reached the step.
    seeds: how many seeds have points.
  """

  run: str
  points: list[tuple[float, float, float]]
  seeds: int


def curves(
    lines: Iterable[rows_lib.Line], metric: str, split: str = 'train'
) -> list[Curve]:
  """Curves of at least two points, in the order of first appearance."""
  found: dict[str, dict[float, dict[int, float]]] = collections.defaultdict(
      lambda: collections.defaultdict(dict)
  )
  for line in lines:
    if line['split'] != split or metric not in line['metrics']:
      continue
    value = line['metrics'][metric]['value']
    if math.isfinite(value):
      step = line['metrics']['step']['value']
      seed = line['provenance']['seed']
      # The folder's name cannot hold what the draft's name may.
      found[line['run'].replace('_', ' ')][step][seed] = value
  made = []
  for run, steps in found.items():
    points = []
    for step, by_seed in sorted(steps.items()):
      values = list(by_seed.values())
      mean, error = (
          rows_lib.mean_and_error(values) if len(values) > 1 else (values[0], 0)
      )
      points.append((step, mean, error))
    if len(points) > 1:
      seeds = {seed for by_seed in steps.values() for seed in by_seed}
      made.append(Curve(run, points, len(seeds)))
  return made


def distillations(lines: Iterable[rows_lib.Line]) -> set[str]:
  """Names of the runs that had a target to learn from."""
  return {line['run'].replace('_', ' ') for line in lines if line['target']}
