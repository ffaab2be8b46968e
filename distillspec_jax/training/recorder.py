"""What training writes down: losses by the window, validations, TensorBoard."""

from __future__ import annotations

import math
import sys
import time

import jax

from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.core import types
from distillspec_jax.distributed import hosts
from distillspec_jax.training import tensorboard

# Metrics that must be finite, in words.
_FINITE = {
    'loss': 'loss',
    'gradient_norm': 'norm of the gradient',
    'parameter_norm': 'norm of the parameters after it',
}


class Recorder:
  """Collects step metrics on the device and writes them window by window.

  Results of steps that a restart repeats are written once: what lies after the
  restored checkpoint, or all where there is none, is dropped when it starts.

  Attributes:
    saved: step of the latest checkpoint, None where there is none.
  """

  def __init__(self, folder, task, target, seed, saved, lock):
    self._folder = folder
    self._lock = lock
    self._seed = seed
    self._task = task.name
    self._target = target.name if target else None
    self._steps: list[tuple[int, dict[str, types.Mean]]] = []
    self._time = time.perf_counter()
    self.saved = saved
    last = -1 if saved is None else saved
    self._writer = tensorboard.MetricsWriter(folder / 'metrics', last)
    results.drop_after(folder, last)

  def __enter__(self):
    self._time = time.perf_counter()
    return self

  def __exit__(self, *exception):
    self._writer.close()

  def step(self, number: int, metrics: dict[str, types.Mean]) -> None:
    self._steps.append((number, metrics))

  def check(self) -> None:
    """Raises Failed at the first step whose numbers are not finite.

    They are the same on all hosts, which therefore end together.
    """
    self._steps = jax.device_get(self._steps)
    for number, metrics in self._steps:
      values = {
          what: float(metrics[name].total) for name, what in _FINITE.items()
      }
      if not all(map(math.isfinite, values.values())):
        listed = ', '.join(
            f'{what} {value:g}' for what, value in values.items()
        )
        last = 'There is no checkpoint yet'
        if self.saved is not None:
          last = f'The last good checkpoint is of step {self.saved}'
        raise errors.Failed(
            f'{self._folder}: training stops at step {number}, which is not'
            f' finite: {listed}. {last}. Lower Optimizer.learning_rate, raise'
            ' Optimizer.warmup_steps, or set Optimizer.max_gradient_norm.'
        )

  def flush(self, number: int, learning_rate: float) -> dict[str, float]:
    """Writes the steps since the last call; returns the window's means."""
    if not self._steps:
      return {}
    self.check()
    fetched, self._steps = self._steps, []
    window: dict[str, types.Mean] = {}
    for at, metrics in fetched:
      for name, mean in metrics.items():
        mean = types.Mean(*mean)
        self._writer.write(at, {name: float(mean.value())})
        window[name] = window[name].merge(mean) if name in window else mean
    elapsed = time.perf_counter() - self._time
    self._time = time.perf_counter()
    # Not those of the loss, which may be sequences.
    tokens = float(window['cross_entropy'].count)
    values = {name: float(mean.value()) for name, mean in window.items()}
    values['learning_rate'] = learning_rate
    values['tokens_per_second'] = tokens / max(elapsed, 1e-9)
    self._writer.write(
        number,
        {
            'learning_rate': learning_rate,
            'tokens_per_second': values['tokens_per_second'],
        },
    )
    units = {
        'loss': 'nats/token',
        'cross_entropy': 'nats/token',
        'target_cross_entropy': 'nats/token',
        'parallel_loss': 'nats/token',
        'tokens_per_second': 'tokens/s',
    }
    self._write(
        number,
        {
            name: results.Metric(value, None, int(tokens), units.get(name, '1'))
            for name, value in values.items()
        },
        split='train',
    )
    # Before a checkpoint of this step can be complete.
    self._writer.flush()
    return values

  def score(self, number, score, selection) -> None:
    """Writes and prints the outcome of a validation.

    Raises:
      Failed: it is not finite.
    """
    if not math.isfinite(score.value):
      raise errors.Failed(
          f'{self._folder}: at step {number} the validation {score.name} is'
          f' {score.value:g}. Judge by another Validation.measure, or check the'
          ' models.'
      )
    self._writer.write(number, {f'validation/{score.name}': score.value})
    self._writer.flush()
    if hosts.is_first():
      text = f'{self._folder.name}: step {number}: validation {score}'
      print(text, file=sys.stderr, flush=True)
    count = len(score.totals)
    metrics = {
        score.name: results.Metric(*score.estimate(), count, score.unit),
        'best_step': results.Metric(selection.step, None, count, 'step'),
    }
    self._write(number, metrics, split='validation')
    # Judging is not training: it does not count in the rate.
    self._time = time.perf_counter()

  def _write(self, number, metrics, split):
    self._lock.check()  # before anything is written into a folder that is gone
    results.write(
        self._folder,
        'training',
        target=self._target,
        draft=self._folder.name,
        task=self._task,
        split=split,
        decoding=None,
        metrics={'step': results.Metric(number, None, 1, 'step'), **metrics},
        seed=self._seed,
    )
