"""What the first process prints: tables to stderr, a result to stdout."""

from __future__ import annotations

from collections.abc import Iterable
import os

import rich.table

from distillspec_jax.core import progress
from distillspec_jax.distributed import hosts

_WIDTH = 200  # of what is not a terminal: no cell needs to be wrapped


def print_tables(tables: Iterable[rich.table.Table]) -> None:
  console = progress.console(quiet=not hosts.is_first())
  if not console.is_terminal:
    console.width = _WIDTH
  for table in tables:
    console.print(table)


def print_path(path: str | os.PathLike[str]) -> None:
  """Prints the folder or page that a command leaves."""
  if hosts.is_first():
    print(path)
