"""A model folder: configuration, parameters and vocabulary of a model.

model.json      the configuration, the step, and the metrics it was kept for
params/         the parameters, by Orbax
vocabulary*     written by the caller, see `save_model`
checksums.json  of all of these, compared when they are read
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

from distillspec_jax.checkpoints import array_checksums
from distillspec_jax.checkpoints import json_files
from distillspec_jax.checkpoints import orbax_arrays
from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import store
from distillspec_jax.core import checksums
from distillspec_jax.core import errors
from distillspec_jax.core import sources
from distillspec_jax.distributed import hosts

_FILE = 'model.json'


def is_checkpoint(folder: epath.Path) -> bool:
  """Whether this is a model folder, or a run's folder with one."""
  return any((at / _FILE).exists() for at in (folder, folder / 'best'))


def write_config(
    folder: str | os.PathLike[str], config: dict[str, Any], **more: Any
) -> None:
  """Writes FOLDER/model.json."""
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps({'config': config, **more}, indent=2) + '\n'
  # Lists of numbers on one line: they may be thousands.
  text = re.sub(r'\[[\d,\s]+\]', lambda match: ' '.join(match[0].split()), text)
  temporary = folder / f'{_FILE}.new'
  temporary.write_text(text)
  temporary.replace(folder / _FILE)


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """The configuration in FOLDER/model.json.

  Raises:
    UserError: the file is absent or not JSON.
  """
  return _read_json(epath.Path(folder))['config']


def _read_json(folder: epath.Path) -> dict[str, Any]:
  path = folder / _FILE
  if not path.exists():
    raise errors.UserError(
        f'{folder} is not a model folder: {path} is not there.'
    )
  with json_files.parsing(path, 'write the model again'):
    values = json.loads(sources.read_bytes(path))
    values['config'].keys()
    return values


def save_model(
    folder: str | os.PathLike[str],
    config: dict[str, Any],
    params: Any,
    step: int,
    metrics: dict[str, Any] | None = None,
    also: Callable[[epath.Path], None] | None = None,
) -> None:
  """Writes a model folder, which is afterwards complete; replaces an old one.

  Each process writes its part of the parameters, the first everything else.

  Args:
    folder: where to.
    config: `T5Config.to_dict()`.
    params: pytree of arrays.
    step: of training.
    metrics: for which the model was kept, and how they were measured.
    also: writes more files into the folder, e.g. the vocabulary.
  """
  folder = pathlib.Path(folder).absolute()
  temporary = folder.with_name(f'.{folder.name}.new')
  previous = folder.with_name(f'.{folder.name}.old')
  if hosts.is_first():
    for left_over in (temporary, previous):
      shutil.rmtree(left_over, ignore_errors=True)
  hosts.wait_for_all('there is room for the model')
  write(epath.Path(temporary), config, params, step, metrics, also)
  if hosts.is_first():
    # A folder cannot replace one that is not empty, so the old one steps aside.
    if folder.exists():
      os.replace(folder, previous)
    os.replace(temporary, folder)
    shutil.rmtree(previous, ignore_errors=True)
  hosts.wait_for_all('the model is in its place')


def write(
    folder: epath.Path,
    config: dict[str, Any],
    params: Any,
    step: int,
    metrics: dict[str, Any] | None = None,
    also: Callable[[epath.Path], None] | None = None,
) -> None:
  """Writes all of it into a folder; arguments as above."""
  record = array_checksums.record(params)
  with store.writing(folder), ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / 'params', params)
    checkpointer.wait_until_finished()
  if hosts.is_first():
    write_config(folder, config, step=step, metrics=metrics or {})
    if also is not None:
      also(folder)
    checksums.write(folder, record)


def identity(path: str | os.PathLike[str] | None) -> str | None:
  """What tells the model in a folder, or a run's best, from all others.

  None where there are no checksums, as in other formats.
  """
  if path is None:
    return None
  text = sources.expanded(path)
  # A bucket that cannot be reached raises errors of many kinds.
  folder = sources.resolve(text) if '://' in text else epath.Path(text)
  for file in (folder / checksums.FILE, folder / 'best' / checksums.FILE):
    if file.exists():
      with json_files.parsing(file):
        return json.loads(file.read_text())['digest'][:12]
  return None


def check_whole(folder: str | os.PathLike[str]) -> None:
  """Reads a model in full; raises UserError unless it is as it was written.

  One that was being replaced when a process was killed is put back first.
  """
  folder = pathlib.Path(folder).absolute()
  previous = folder.with_name(f'.{folder.name}.old')
  if hosts.is_first() and previous.exists() and not folder.exists():
    os.replace(previous, folder)
  checkpoint = read(folder)
  array_checksums.verify(checkpoint.tensors, checkpoint.checksums)


def read(
    folder: str | os.PathLike[str], step: int | None = None
) -> parameters.Checkpoint:
  """The model in a folder; no parameter is read yet.

  Args:
    folder: as `save_model` left it, or a run's folder, whose best model is
      taken.
    step: the run's checkpoint of that step instead.

  Raises:
    UserError: not a model folder, an incomplete or damaged one, or no such
      step.
  """
  folder = epath.Path(folder)
  prefix, ignored = (), ()
  if step is not None:
    arrays = _state_of_step(folder, step)
    prefix, ignored = ('params',), ('the state of training',)
    saved = store.read_record(arrays.parent)
    record = {
        path.removeprefix('params/'): entry
        for path, entry in saved.arrays.items()
        if path.startswith('params/')
    }
  else:
    if not (folder / 'params').exists() and (folder / 'best').exists():
      folder = folder / 'best'
    arrays = folder / 'params'
    record = checksums.check(folder)
  values = _read_json(folder)
  if step is not None:  # what lies in the checkpoint has a checksum
    values['config'] = saved.extra.get('model', values['config'])
  if not orbax_arrays.is_checkpoint(arrays):
    raise errors.UserError(
        f'{folder} is not a complete model: {arrays} is not there or is'
        ' incomplete.'
    )
  tensors = orbax_arrays.read(arrays, prefix)
  return parameters.Checkpoint(
      parameters.parse_config(values['config'], folder / _FILE),
      tensors,
      ignored,
      values.get('step', 0) if step is None else step,
      array_checksums.expected(tensors, record, arrays),
  )


def _state_of_step(folder: epath.Path, step: int) -> epath.Path:
  """The training state of a step, written by `store`."""
  checkpoints = folder / 'checkpoints'
  state = checkpoints / str(step) / 'state'
  if not orbax_arrays.is_checkpoint(state):
    children = checkpoints.iterdir() if checkpoints.exists() else ()
    steps = sorted(int(f.name) for f in children if f.name.isdigit())
    raise errors.UserError(
        f'{folder} has no checkpoint of step {step}; it has'
        f' {", ".join(map(str, steps)) or "none"}.'
    )
  return state
