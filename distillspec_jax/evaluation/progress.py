"""What a person sees while something is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import sys
import time
from typing import TypeVar

import jax
import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 5.0

Item = TypeVar('Item')


def shown(items: Sequence[Item], name: str) -> Iterator[Item]:
  """The items, with a bar that says how many of them are done.

  Without a terminal it is a line every few seconds. Only the first process
  shows anything.
  """
  if jax.process_index():
    yield from items
    return
  console = rich.console.Console(stderr=True)
  if console.is_terminal:
    yield from rich.progress.track(
        items, description=name, console=console, transient=True
    )
    return
  printed = time.monotonic()
  for done, item in enumerate(items, start=1):
    yield item
    now = time.monotonic()
    if now - printed >= _SECONDS_BETWEEN_LINES:
      printed = now
      print(f'{name}: {done}/{len(items)}', file=sys.stderr, flush=True)
