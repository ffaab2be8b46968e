"""A model folder: what a model is, its parameters, and its vocabulary.

model.json   the configuration, the step and the metrics it was kept for
params/      the parameters, by Orbax
vocabulary*  written by the caller, see `save_model`
"""

from __future__ import annotations

from collections.abc import Callable
import json
import os
import pathlib
import re
import shutil
from typing import Any

from etils import epath
import orbax.checkpoint as ocp

from distillspec_jax.checkpoints import orbax_arrays
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.core import errors
from distillspec_jax.distributed import hosts


def is_one(folder: epath.Path) -> bool:
  """Whether this is a model folder, or a run's folder with one."""
  return any((at / 'model.json').exists() for at in (folder, folder / 'best'))


def write_config(
    folder: str | os.PathLike[str], config: dict[str, Any], **more: Any
) -> None:
  """Writes FOLDER/model.json."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps({'config': config, **more}, indent=2) + '\n'
  # Lists of numbers on one line: they may be thousands.
  text = re.sub(r'\[[\d,\s]+\]', lambda found: ' '.join(found[0].split()), text)
  (folder / 'model.json.new').write_text(text)
  (folder / 'model.json.new').replace(folder / 'model.json')


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """The configuration in FOLDER/model.json.

  Raises:
    UserError: the file is absent or not JSON.
  """
  return _read_json(epath.Path(folder))['config']


def _read_json(folder: epath.Path) -> dict[str, Any]:
  path = folder / 'model.json'
  try:
    values = json.loads(path.read_text())
    values['config'].keys()
    return values
  except FileNotFoundError as error:
    raise errors.UserError(
        f'{folder} is not a model folder: {path} is not there.'
    ) from error
  except (
      ValueError, KeyError, TypeError, AttributeError, RecursionError,
  ) as error:  # fmt: skip
    raise errors.UserError(
        f'{path} is damaged ({error!r}); write the model again.'
    ) from error


def save_model(
    folder: str | os.PathLike[str],
    config: dict[str, Any],
    params: Any,
    step: int,
    metrics: dict[str, float] | None = None,
    also: Callable[[epath.Path], None] | None = None,
) -> None:
  """Writes a model folder, which is afterwards complete; replaces an old one.

  All processes write their part of the parameters, the first all else.

  Args:
    folder: where to.
    config: plain data.
    params: pytree of arrays.
    step: of training.
    metrics: what it was kept for.
    also: writes more files into the folder, e.g. the vocabulary.
  """
  folder = pathlib.Path(folder).absolute()
  beside = folder.with_name(f'.{folder.name}.new')
  before = folder.with_name(f'.{folder.name}.old')
  if hosts.is_first():
    for left_over in (beside, before):
      shutil.rmtree(left_over, ignore_errors=True)
  hosts.wait_for_all('there is room for the model')
  write(epath.Path(beside), config, params, step, metrics)
  if hosts.is_first():
    if also is not None:
      also(epath.Path(beside))
    if folder.exists():
      os.replace(folder, before)
    os.replace(beside, folder)
    shutil.rmtree(before, ignore_errors=True)
  hosts.wait_for_all('the model is in its place')


def write(
    folder: epath.Path,
    config: dict[str, Any],
    params: Any,
    step: int,
    metrics: dict[str, float] | None = None,
) -> None:
  """Writes params/ and model.json into a folder; arguments as above."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / 'params', params)
  if hosts.is_first():
    write_config(folder, config, step=step, metrics=metrics or {})


def read(
    folder: str | os.PathLike[str], step: int | None = None
) -> tensors_lib.Checkpoint:
  """The model in a folder; no parameter is read yet.

  Args:
    folder: as `save_model` left it, or a run's folder, of which the best
      checkpoint is taken.
    step: the run's checkpoint of that step instead.

  Raises:
    UserError: not a model folder, not a whole one, or no such step.
  """
  folder = epath.Path(folder)
  if step is not None:
    return _read_step(folder, step)
  if not (folder / 'params').exists() and (folder / 'best').exists():
    folder = folder / 'best'
  values = _read_json(folder)
  if not orbax_arrays.is_one(folder / 'params'):
    raise errors.UserError(
        f'{folder} is not a whole model: {folder / "params"} is not there or'
        ' was not written to its end.'
    )
  return tensors_lib.Checkpoint(
      values['config'],
      orbax_arrays.read(folder / 'params'),
      step=values.get('step', 0),
  )


def _read_step(folder: epath.Path, step: int) -> tensors_lib.Checkpoint:
  checkpoints = folder / 'checkpoints'
  state = checkpoints / str(step) / 'state'
  if not orbax_arrays.is_one(state):
    steps = []
    if checkpoints.exists():
      steps = sorted(
          int(f.name) for f in checkpoints.iterdir() if f.name.isdigit()
      )
    raise errors.UserError(
        f'{folder} has no checkpoint of step {step}; it has'
        f' {", ".join(map(str, steps)) or "none"}.'
    )
  tensors = orbax_arrays.read(state, ('params',))
  return tensors_lib.Checkpoint(
      read_config(folder), tensors, ('the state of training',), step
  )


def unscanned(checkpoint: tensors_lib.Checkpoint) -> tensors_lib.Checkpoint:
  """The same model with a tensor for each layer, as all other formats have."""
  if not checkpoint.config.get('scan_layers'):
    return checkpoint
  tensors = {}
  for path, tensor in checkpoint.tensors.items():
    side, scanned, rest = path.partition('/layers/')
    if not scanned:
      tensors[path] = tensor
      continue
    for i in range(tensor.shape[0]):
      tensors[f'{side}/layers_{i}/{rest}'] = tensor.at(0, i)
  config = {**checkpoint.config, 'scan_layers': False}
  return checkpoint._replace(config=config, tensors=tensors)
