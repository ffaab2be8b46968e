"""What a person sees while something takes its time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import sys
import time
from typing import TypeVar

import jax
import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 5.0

Item = TypeVar('Item')


def shown(
    items: Iterable[Item], name: str, total: int | None = None
) -> Iterator[Item]:
  """The items, with a bar that says how many of them are done.

  Without a terminal it is a line every few seconds. Only the first process
  shows anything.

  Args:
    items: what goes by.
    name: of what is done.
    total: number of items; default: their len.
  """
  if total is None:
    total = len(items)  # type: ignore[arg-type]
  if jax.process_index():
    yield from items
    return
  console = rich.console.Console(stderr=True)
  if console.is_terminal:
    yield from rich.progress.track(
        items, name, total, console=console, transient=True
    )
    return
  printed = time.monotonic()
  for done, item in enumerate(items, start=1):
    yield item
    now = time.monotonic()
    if now - printed >= _SECONDS_BETWEEN_LINES:
      printed = now
      print(f'{name}: {done}/{total}', file=sys.stderr, flush=True)
