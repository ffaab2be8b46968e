"""Asks the process with the TPU compiler, and remembers what it answered.

An answer is kept in a file, under a hash of all that it follows from: the
configuration, the package's source, and the versions of JAX and the compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pathlib
import pickle
import subprocess
import sys
from typing import Any

from distillspec_jax.core import cache
from distillspec_jax.core import errors
from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import config as config_lib

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Folders whose modules are in no program and read none. All others count, so
# that a module that moves cannot leave the key unnoticed.
_OUTSIDE = ('commands', 'reporting', 'studies')


def ask(
    config: config_lib.PlanConfig, programs: tuple[str, ...]
) -> compiled_program.Compilation:
  """Counts bytes and compiles, or reads what came of it before.

  Args:
    config: of the run.
    programs: names of what to compile, see `PlanConfig.programs`.

  Raises:
    UserError: there is no compiler, or the mesh does not fit the slice.
    RuntimeError: the compiler failed.
  """
  name = f'{_key(config, programs)}.pickle'
  return pickle.loads(cache.get('plans', name, lambda: _run(config, programs)))


def _run(config: config_lib.PlanConfig, programs: tuple[str, ...]) -> bytes:
  """A pickled `Compilation`."""
  process = subprocess.run(
      [sys.executable, '-m', 'distillspec_jax.planning.compiler_process'],
      input=pickle.dumps((config, programs)),
      capture_output=True,
      env=_environment(),
      check=False,
  )
  if process.returncode:
    output = process.stderr.decode(errors='replace')
    raise RuntimeError(f'The TPU compiler failed:\n{output[-4000:]}')
  answer = pickle.loads(process.stdout)
  if isinstance(answer, errors.UserError):
    raise answer
  return process.stdout


def _environment() -> dict[str, str]:
  """The process's: the compiler, and no TPU."""
  return {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'TPU_LIBRARY_PATH': str(library()),
      'TPU_SKIP_MDS_QUERY': '1',  # do not look up which TPU this machine has
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # it opens none
  }


def library() -> pathlib.Path:
  """The file of the TPU compiler.

  A libtpu in site-packages is loaded by JAX in every process, which takes a
  second and, without a TPU, prints a few lines of complaints. So a development
  environment has it in a folder of its own, PREFIX/tpu_compiler.

  Raises:
    UserError: there is none.
  """
  spec = importlib.util.find_spec('libtpu')
  is_package = spec is not None and spec.origin  # not just a folder
  folders = [pathlib.Path(spec.origin).parent] if is_package else []
  folders.append(pathlib.Path(sys.prefix) / 'tpu_compiler' / 'libtpu')
  files = [folder / 'libtpu.so' for folder in folders]
  if os.environ.get('TPU_LIBRARY_PATH'):
    files.insert(0, pathlib.Path(os.environ['TPU_LIBRARY_PATH']))
  for file in files:
    if file.is_file():
      return file
  raise errors.UserError(
      'plan needs the TPU compiler, libtpu, which is not installed; it needs no'
      " TPU. Install 'distillspec_jax[tpu]', or libtpu alone where JAX does not"
      f' load it: pip install --no-deps --target {folders[-1].parent} libtpu.'
  )


def _key(config: config_lib.PlanConfig, programs: tuple[str, ...]) -> str:
  versions = [
      importlib.metadata.version(name)
      for name in ('jax', 'jaxlib', 'flax', 'optax')
  ]
  file = library()
  versions += sorted(
      path.name for path in file.parents[1].glob('libtpu-*.dist-info')
  ) or [str(file), str(file.stat().st_mtime)]
  inputs = json.dumps([config, programs, versions, _source()], default=_plain)
  return hashlib.sha256(inputs.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
  """For `json`: the fields of a dataclass and its name, or pickled bytes."""
  if dataclasses.is_dataclass(value):
    kind = type(value)
    name = f'{kind.__module__}.{kind.__qualname__}'
    return [name, vars(value), *_own_source(kind)]
  try:
    return [pickle.dumps(value).hex(), *_own_source(value)]
  except Exception as error:  # of many kinds
    raise errors.UserError(
        f'plan cannot send {value!r} to the process with the compiler'
        f' ({error}); define it at the top level of a module.'
    ) from error


def _own_source(value: Any) -> list[str]:
  """The code of a function or class of the user's own."""
  module = inspect.getmodule(value)
  if module is None or module.__name__.startswith('distillspec_jax.'):
    return []  # it is in `_source`
  try:
    return [inspect.getsource(module)]
  except (OSError, TypeError):  # it has none in Python
    return []


@functools.cache
def _source() -> str:
  digest = hashlib.sha256()
  for path in sources():
    digest.update(path.read_bytes())
  return digest.hexdigest()


def sources() -> Iterator[pathlib.Path]:
  """The files of the package that the programs may depend on."""
  for path in sorted(_PACKAGE.rglob('*.py')):
    if path.relative_to(_PACKAGE).parts[0] not in _OUTSIDE:
      yield path
