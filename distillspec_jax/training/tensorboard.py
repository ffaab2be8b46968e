"""Scalars of a run for TensorBoard."""

from __future__ import annotations

import os

import jax
import tensorboardX


class MetricsWriter:
  """Writes scalars into a folder; only the first process writes."""

  def __init__(self, folder: str | os.PathLike[str]):
    self._writer = None
    if jax.process_index() == 0:
      self._writer = tensorboardX.SummaryWriter(os.fspath(folder))

  def write(self, step: int, values: dict[str, float]) -> None:
    if self._writer is not None:
      for name, value in values.items():
        self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
