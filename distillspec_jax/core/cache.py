"""Where files are kept between runs that can be made again."""

from __future__ import annotations

from collections.abc import Callable
import os
import pathlib


def folder(name: str) -> pathlib.Path | None:
  """The folder for files of one kind, in XDG_CACHE_HOME or ~/.cache.

  None where there is none to write to, as for a user without a home folder.
  """
  base = os.path.expanduser(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
  if base.startswith('~'):
    return None
  path = pathlib.Path(base) / 'distillspec_jax' / name
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError:
    return None
  return path if os.access(path, os.W_OK) else None


def get(kind: str, name: str, make: Callable[[], bytes]) -> bytes:
  """The content of a file of one kind; made and kept if it is not there."""
  parent = folder(kind)
  path = None if parent is None else parent / name
  if path is not None and path.is_file():
    return path.read_bytes()
  content = make()
  if path is not None:
    temporary = path.with_name(f'{name}.{os.getpid()}')
    temporary.write_bytes(content)
    os.replace(temporary, path)
  return content
