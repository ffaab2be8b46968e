"""The gin files that come with the package, and files that are like a name."""

from __future__ import annotations

from collections.abc import Iterator
import difflib
import os
import pathlib
from typing import Any


def folder() -> pathlib.Path:
  """The gin files that come with the package."""
  here = pathlib.Path(__file__).resolve().parents[1]
  packaged = here / 'gin_configs'
  return packaged if packaged.is_dir() else here.parent / 'gin_configs'


def described() -> Iterator[str]:
  """The gin files of the package, and what their first lines say."""
  yield f'gin files in {folder()}:'
  for path in sorted(folder().rglob('*.gin')):
    header = path.read_text(encoding='utf-8').partition('\n')[0]
    yield f'{path.relative_to(folder())}  {header.removeprefix("# ")}'


def short(selector: str) -> str:
  """Module and name, as gin files write it."""
  return '.'.join(selector.split('.')[-2:])


def with_texts(*texts: str) -> list[str]:
  """The files of the package that have all of these texts in them."""
  return [
      str(path.relative_to(folder()))
      for path in sorted(folder().rglob('*.gin'))
      if all(text in path.read_text(encoding='utf-8') for text in texts)
  ]


def like(gin: Any, name: str) -> list[str]:
  """Gin files whose names are like one that is not there."""
  parent, stem = os.path.split(name)[0], pathlib.Path(name).stem
  known = [str(p.relative_to(folder())) for p in folder().rglob('*.gin')]
  for prefix in map(pathlib.Path, gin.config._LOCATION_PREFIXES):
    beside = (*(prefix / parent).glob('*.gin'), prefix / name / 'config.gin')
    known += [os.path.relpath(p, prefix) for p in beside if p.is_file()]
  same = [
      each
      for each in known
      if pathlib.Path(each).stem == stem or os.path.dirname(each) == name
  ]
  return same or difflib.get_close_matches(name, sorted(set(known)))
