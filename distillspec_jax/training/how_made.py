"""One line of results that tells how a model was made, for the report."""

from __future__ import annotations

import pathlib

import jax

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import results
from distillspec_jax.data import tasks


def record(
    folder: pathlib.Path,
    settings: dict[str, str],
    trained: loading.Loaded,
    target: loading.Loaded | None,
    task: tasks.Task,
    seed: int,
) -> None:
  """Writes the settings and the models' sizes, unless the run has them."""
  path = folder / results.FILE
  known = [
      line['decoding']
      for line in (results.read(path) if path.exists() else [])
      if line['kind'] == 'run'
  ]
  if known[-1:] == [settings]:
    return
  metrics = {
      name: results.Metric(_size(model), None, 1, 'parameters')
      for name, model in (
          ('parameters', trained),
          ('target_parameters', target),
      )
      if model is not None
  }
  results.write(
      folder,
      'run',
      target=None if target is None else target.name,
      draft=folder.name,
      task=task.name,
      split='',
      decoding=settings,
      metrics=metrics,
      seed=seed,
  )


def _size(loaded: loading.Loaded) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(loaded.model.params))
