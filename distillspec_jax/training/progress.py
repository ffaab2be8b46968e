"""What a person sees of a run: a bar or lines, and TensorBoard."""

from __future__ import annotations

import os
import pathlib
import sys
import time
from typing import Any

import jax
import rich.console
import rich.progress
import tensorboardX

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
  """A progress bar with rate, time left and the latest values.

  Without a terminal it prints a line every few seconds instead, the first and
  the last value always. Only the first process prints.
  """

  def __init__(self, total: int, start: int, name: str):
    self._total = total
    self._start = start
    self._name = name
    self._began = time.monotonic()
    self._printed = float('-inf')
    self._bar: rich.progress.Progress | None = None

  def __enter__(self) -> Progress:
    console = rich.console.Console(stderr=True)
    if console.is_terminal and jax.process_index() == 0:
      self._bar = rich.progress.Progress(
          '[bold]{task.description}',
          rich.progress.BarColumn(),
          rich.progress.MofNCompleteColumn(),
          rich.progress.TimeRemainingColumn(),
          '{task.fields[values]}',
          console=console,
      )
      self._task = self._bar.add_task(
          self._name, total=self._total, completed=self._start, values=''
      )
      self._bar.start()
    return self

  def __exit__(self, *exception: Any) -> None:
    if self._bar is not None:
      self._bar.stop()

  def update(self, step: int, values: dict[str, float]) -> None:
    """Shows that `step` steps are done."""
    if jax.process_index():
      return
    elapsed = max(time.monotonic() - self._began, 1e-9)
    rate = (step - self._start) / elapsed
    parts = [
        f'{name} {values[name]:.3f}'
        for name in ('loss', 'acceptance_rate')
        if name in values
    ]
    text = '  '.join(parts + [f'{rate:.1f} steps/s'])
    if self._bar is not None:
      self._bar.update(self._task, completed=step, values=text)
      return
    now = time.monotonic()
    if step < self._total and now - self._printed < _SECONDS_BETWEEN_LINES:
      return
    self._printed = now
    left = (self._total - step) / rate
    print(
        f'{self._name}: step {step}/{self._total}  {text}  {left:.0f} s left',
        file=sys.stderr,
        flush=True,
    )


class MetricsWriter:
  """Scalars for TensorBoard; only the first process writes."""

  def __init__(self, folder: str | os.PathLike[str]):
    self._writer = None
    if jax.process_index() == 0:
      folder = pathlib.Path(folder)
      self._writer = tensorboardX.SummaryWriter(str(folder))

  def write(self, step: int, values: dict[str, float]) -> None:
    if self._writer is not None:
      for name, value in values.items():
        self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
