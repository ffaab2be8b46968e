"""Asks the process with the TPU compiler, and remembers what it answered.

An answer is kept in a file, under a hash of all that it follows from: the
setting, the package's source, and the versions of JAX and of the compiler.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import pickle
import subprocess
import sys
from typing import NamedTuple

from distillspec_jax.core import errors
from distillspec_jax.planning import compiled as compiled_lib
from distillspec_jax.planning import setting as setting_lib

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# The code that is in the programs, and that which reads them.
_SOURCES = (
    *(
        f'{s}/*.py'
        for s in (
            'core',
            'distributed',
            'models',
            'sampling',
            'losses',
            'training',
        )
    ),
    *(f'planning/{f}.py' for f in ('compiled', 'hlo', 'programs', 'worker')),
)


class Answer(NamedTuple):
  """What is known of a setting.

  Attributes:
    bytes: a chip, by what they are for, see `programs.Run`.
    compiled: program -> what the compiler says of it.
  """

  bytes: dict[str, int]
  compiled: dict[str, compiled_lib.Compiled]


def programs(setting: setting_lib.Setting) -> tuple[str, ...]:
  """Names of the programs that a run consists of, see `Run.lower`."""
  names = ('step',) if setting.trains else ()
  if setting.decodes and setting.target is not None:
    names += ('speculative', 'autoregressive', 'encoder')
  return names


def ask(setting: setting_lib.Setting, programs: tuple[str, ...] = ()) -> Answer:
  """Counts bytes and compiles, or reads what came of it before.

  Args:
    setting: of the run.
    programs: names of what to compile, see `programs`.

  Raises:
    UserError: there is no compiler, or the mesh does not fit the slice.
    RuntimeError: the compiler failed.
  """
  path = _folder() / f'{_key(setting, programs)}.json'
  if path.exists():
    return _read(path)
  answer = _start(setting, programs)
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f'{path.name}.{os.getpid()}')
  beside.write_text(
      json.dumps(
          {
              'bytes': answer.bytes,
              'compiled': {k: v.to_dict() for k, v in answer.compiled.items()},
          }
      )
  )
  os.replace(beside, path)
  return answer


def _read(path: pathlib.Path) -> Answer:
  values = json.loads(path.read_text())
  return Answer(
      values['bytes'],
      {
          name: compiled_lib.Compiled.from_dict(each)
          for name, each in values['compiled'].items()
      },
  )


def _start(setting: setting_lib.Setting, programs: tuple[str, ...]) -> Answer:
  done = subprocess.run(
      [sys.executable, '-m', 'distillspec_jax.planning.worker'],
      input=pickle.dumps((setting, programs)),
      capture_output=True,
      env=_environment(),
      check=False,
  )
  if done.returncode:
    said = done.stderr.decode(errors='replace')
    raise RuntimeError(f'The TPU compiler failed:\n{said[-4000:]}')
  made = pickle.loads(done.stdout)
  if isinstance(made, errors.UserError):
    raise made
  return made


def _environment() -> dict[str, str]:
  """Of the process: the compiler, and no TPU."""
  return {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'TPU_LIBRARY_PATH': str(library()),
      'TPU_SKIP_MDS_QUERY': '1',  # nobody is asked which TPU this is
      'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # it opens none
  }


def library() -> pathlib.Path:
  """The file of the TPU compiler.

  JAX loads a libtpu that is installed beside it in every process, which takes a
  second and, without a TPU, a few lines of complaints. So a development
  environment has it in a folder of its own, PREFIX/tpu_compiler.

  Raises:
    UserError: there is none.
  """
  found = importlib.util.find_spec('libtpu')
  folders = [pathlib.Path(found.origin).parent] if found else []
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


def _key(setting: setting_lib.Setting, programs: tuple[str, ...]) -> str:
  versions = [
      importlib.metadata.version(name)
      for name in ('jax', 'jaxlib', 'flax', 'optax')
  ]
  file = library()
  versions += sorted(
      path.name for path in file.parents[1].glob('libtpu-*.dist-info')
  ) or [str(file), str(file.stat().st_mtime)]
  values = dataclasses.asdict(setting)
  asked = json.dumps([values, programs, versions], default=repr)
  parts = (asked.encode(), _source())
  return hashlib.sha256(b'\0'.join(parts)).hexdigest()[:32]


@functools.cache
def _source() -> bytes:
  digest = hashlib.sha256()
  for pattern in _SOURCES:
    for path in sorted(_PACKAGE.glob(pattern)):
      digest.update(path.read_bytes())
  return digest.digest()


def _folder() -> pathlib.Path:
  base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(base) / 'distillspec_jax' / 'plans'
