"""Where files are kept between runs that can be made again."""

from __future__ import annotations

import os
import pathlib


def folder(name: str) -> pathlib.Path:
  """The folder for files of one kind, in XDG_CACHE_HOME or ~/.cache."""
  base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(base) / 'distillspec_jax' / name
