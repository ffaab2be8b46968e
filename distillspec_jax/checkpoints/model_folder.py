"""A model folder: what a model is, its parameters, and its vocabulary.

model.json   the configuration, the step and the metrics it was kept for
params/      the parameters, by Orbax
vocabulary*  written by the caller, see `save_model`
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp

from distillspec_jax.core import errors


def write_config(
    folder: pathlib.Path, config: dict[str, Any], **more: Any
) -> None:
  """Writes FOLDER/model.json."""
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps({'config': config, **more}, indent=2) + '\n'
  (folder / 'model.json.new').write_text(text)
  os.replace(folder / 'model.json.new', folder / 'model.json')


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """The configuration in FOLDER/model.json.

  Raises:
    UserError: the file is absent or not JSON.
  """
  path = pathlib.Path(folder) / 'model.json'
  try:
    return json.loads(path.read_text())['config']
  except FileNotFoundError as error:
    raise errors.UserError(
        f'{folder} is not a model folder: {path} is not there.'
    ) from error
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise errors.UserError(
        f'{path} is damaged ({error!r}); write the model again.'
    ) from error


def save_model(
    folder: str | os.PathLike[str],
    config: dict[str, Any],
    params: Any,
    step: int,
    metrics: dict[str, float] | None = None,
    also: Callable[[pathlib.Path], None] | None = None,
) -> None:
  """Writes a model folder, which is afterwards complete; replaces an old one.

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
  for left_over in (beside, before):
    shutil.rmtree(left_over, ignore_errors=True)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(beside / 'params', params)
  write_config(beside, config, step=step, metrics=metrics or {})
  if also is not None:
    also(beside)
  if folder.exists():
    os.replace(folder, before)
  os.replace(beside, folder)
  shutil.rmtree(before, ignore_errors=True)


def load_model(
    folder: str | os.PathLike[str], like: Any
) -> tuple[dict[str, Any], Any]:
  """The configuration and the parameters of a model folder.

  Args:
    folder: as `save_model` left it.
    like: tree of `ShapeDtypeStruct` that the parameters must match.

  Raises:
    UserError: not a model folder, or parameters are missing, left over or of
      another shape; all of them are listed.
  """
  folder = pathlib.Path(folder).absolute()
  config = read_config(folder)
  if not (folder / 'params').is_dir():
    raise errors.UserError(
        f'{folder} is not a whole model: {folder / "params"} is not there.'
    )
  with ocp.StandardCheckpointer() as checkpointer:
    metadata = checkpointer.metadata(folder / 'params')
    found = getattr(metadata, 'item_metadata', metadata)
    _check(folder, getattr(found, 'tree', found), like)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        like,
    )
    return config, checkpointer.restore(folder / 'params', like)


def _check(folder: pathlib.Path, found: Any, like: Any) -> None:
  """Raises with every path that differs."""
  have, want = _shapes(found), _shapes(like)
  problems = [f'{path} is missing' for path in sorted(set(want) - set(have))]
  problems += [f'{path} is left over' for path in sorted(set(have) - set(want))]
  problems += [
      f'{path} is {have[path]} but should be {want[path]}'
      for path in sorted(set(have) & set(want))
      if have[path] != want[path]
  ]
  if problems:
    raise errors.UserError(
        f'The parameters in {folder} do not fit its configuration: '
        + '; '.join(problems)
        + '.'
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape)
      for path, leaf in leaves
  }
