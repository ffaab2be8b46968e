"""How good the model in training is, on held-out examples, and which is kept.

A draft is judged by block efficiency: it decodes speculatively with the target.
A model without a target is judged by its cross-entropy. All steps are judged on
the same examples with the same random numbers, so that differences are paired.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from distillspec_jax.core import randomness
from distillspec_jax.core import statistics
from distillspec_jax.core import types
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Score:
  """A validation's outcome, example by example.

  Attributes:
    name: 'block_efficiency', 'cross_entropy' or 'loss'.
    unit: of the value.
    sign: 1 where more is better, else -1.
    totals: of each example: tokens, or nats.
    counts: of each example: target calls, or tokens.
  """

  name: str
  unit: str
  sign: int
  totals: tuple[float, ...]
  counts: tuple[float, ...]

  @property
  def value(self) -> float:
    """The ratio of the sums."""
    return self.estimate().value

  def estimate(self) -> statistics.Estimate:
    return statistics.ratio(np.array(self.totals), np.array(self.counts))

  def gain_over(self, other: Score) -> statistics.Estimate:
    """By how much it is better than another on the same examples, paired."""
    value, error = statistics.ratio_difference(
        (np.array(other.totals), np.array(self.totals)),
        (np.array(other.counts), np.array(self.counts)),
    )
    return statistics.Estimate(self.sign * value, error)

  def __str__(self) -> str:
    value, error = self.estimate()
    error_text = '' if error is None else f' ± {error:.3f}'
    return f'{self.name} {value:.3f}{error_text} {self.unit}'


@dataclasses.dataclass
class Selection:
  """Which step is kept: the latest that is not clearly worse than the best.

  Clearly is by more than the standard error of the paired difference from the
  best score there was, so that a sequence of small losses does not add up.

  Attributes:
    keep: 'best', or 'last': the latest in any case.
    first: step of the first score, of the model as it came.
    step: that is kept; None before the first score.
    value: its score's.
    best: the best score so far.
  """

  keep: str = 'best'
  first: int | None = None
  step: int | None = None
  value: float | None = None
  best: Score | None = None

  def takes(self, step: int, score: Score) -> bool:
    """Whether the model of this step is the one to keep; notes that it is."""
    if self.first is None:
      self.first = step
    takes = True
    if self.best is not None:
      gain, error = score.gain_over(self.best)
      takes = self.keep == 'last' or gain >= -(error or 0.0)
    if self.best is None or gain > 0:
      self.best = score
    if takes:
      self.step, self.value = step, score.value
    return takes

  def describe(self, run: str, measure: str, last: int) -> str:
    """One line: what is kept, and a warning if that is not what was trained."""
    text = f'{run}: best/ is step {self.step} of {last}'
    if self.keep == 'last':
      return f'{text}, the last one'
    text += f', chosen by {measure}, on validation: {self.value:.3f}'
    if self.step == self.first and last > self.first:
      text = (
          f'WARNING: {text}. This is the model as it came, UNTRAINED: every'
          ' later step was clearly worse. Train longer or at another learning'
          ' rate, judge by Validation.measure, on more Validation.examples, or'
          " set Validation.keep = 'last'."
      )
    return text

  def to_dict(self) -> dict[str, Any]:
    """Plain data, for a checkpoint."""
    return dataclasses.asdict(self)

  def restore(self, values: dict[str, Any]) -> None:
    """Takes over what `to_dict` gave, but for `keep`."""
    best = values['best']
    self.first, self.step, self.value = (
        values[name] for name in ('first', 'step', 'value')
    )
    self.best = Score(
        **{**best, 'totals': tuple(best['totals']),
           'counts': tuple(best['counts'])}
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames='method')
def _row_metrics(method, model, target, batch):
  metrics = step_lib.make_row_metrics(method, model.network)
  return metrics(model.params, target, batch, batch.prompt, None)


def loss(
    method: method_lib.Method,
    target: model_lib.Model | None,
    model: model_lib.Model,
    batches: list[types.Batch],
    examples: int | None = None,
) -> Score:
  """What the method minimises, on the labels of the batches.

  Args:
    method: whose divergence; a method without one is judged by cross-entropy,
      without its options.
    target: None where the method needs none.
    model: that is judged.
    batches: whose labels.
    examples: only the first so many.
  """
  name = 'loss' if method.is_distillation else 'cross_entropy'
  means = [
      (batch, _row_metrics(method, model, target, batch)[name])
      for batch in batches
  ]
  return _score(name, 'nats/token', -1, means, examples)


def block_efficiency(
    target: model_lib.Model,
    draft: model_lib.Model,
    batches: list[types.Batch],
    decoding: decoding_lib.Decoding,
    examples: int | None = None,
) -> Score:
  """Tokens per target call over the batches' inputs; arguments as in `loss`."""
  means = []
  for number, batch in enumerate(batches):
    rows = batch.inputs.shape[0]
    keys = randomness.row_keys(
        jax.random.key(0), number * rows + jnp.arange(rows)
    )
    counts = speculative.generate(
        target, draft, batch.prompt, keys, decoding
    ).statistics
    means.append((batch, types.Mean(counts.emitted, counts.blocks)))
  return _score('block_efficiency', 'tokens/block', 1, means, examples)


def _score(
    name: str,
    unit: str,
    sign: int,
    means: list[tuple[types.Batch, types.Mean]],
    examples: int | None,
) -> Score:
  """The score of the examples in the batches' rows; padding rows are none."""
  parts = [
      (jnp.any(batch.segments > 0, axis=1), mean.total, mean.count)
      for batch, mean in means
  ]
  # No process has all rows.
  parts = multihost_utils.process_allgather(parts, tiled=True)
  real, totals, counts = map(np.concatenate, zip(*parts))
  listed = lambda array: tuple(array[real][:examples].astype(float).tolist())
  return Score(name, unit, sign, listed(totals), listed(counts))
