"""How far something is: a bar on a terminal, else a line now and then.

Only the first process shows anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import os
import sys
import time
from typing import Any, TypeVar

import jax
import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 5.0
_SHARE_BETWEEN_LINES = 0.05  # of the time so far: long work has few lines

Item = TypeVar('Item')


def shown(
    items: Iterable[Item], name: str, total: int | None = None
) -> Iterator[Item]:
  """The items, with the number of those that are done; quick work is silent.

  Args:
    items: what is worked through.
    name: of the work.
    total: number of items; default: their len.
  """
  if total is None:
    total = len(items)  # type: ignore[arg-type]
  with Progress(name, total, is_brief=True) as progress:
    for done, item in enumerate(items, start=1):
      yield item
      progress.update(done)


def is_plain() -> bool:
  """Whether output is kept, in a file or a notebook, and not on a screen.

  Notebooks set FORCE_COLOR and run commands in terminals of their own, so what
  rich believes does not tell.
  """
  return not sys.stderr.isatty() or 'JPY_PARENT_PID' in os.environ


def console(quiet: bool = False) -> rich.console.Console:
  """The console of stderr, without escape codes where output is kept."""
  if is_plain():
    return rich.console.Console(
        stderr=True, quiet=quiet, force_terminal=False, force_jupyter=False
    )
  return rich.console.Console(stderr=True, quiet=quiet)


class Progress:
  """The number of steps done, their rate, the time left, and a text.

  Args:
    name: of the work.
    total: number of steps; None where it is not known.
    start: steps that are done already.
    is_brief: leaves nothing on the terminal, and without one prints nothing
      for quick work; otherwise the first and the last update are printed.
  """

  def __init__(
      self,
      name: str,
      total: int | None,
      start: int = 0,
      *,
      is_brief: bool = False,
  ):
    self._name, self._total, self._start = name, total, start
    self._is_brief = is_brief
    self._bar: rich.progress.Progress | None = None

  def __enter__(self) -> Progress:
    self._started = time.monotonic()
    self._printed = self._started if self._is_brief else float('-inf')
    if not is_plain() and jax.process_index() == 0:
      self._bar = rich.progress.Progress(
          '[bold]{task.description}',
          rich.progress.BarColumn(),
          rich.progress.MofNCompleteColumn(),
          rich.progress.TimeRemainingColumn(),
          '{task.fields[text]}',
          console=console(),
          transient=self._is_brief,
      )
      self._task = self._bar.add_task(
          self._name, total=self._total, completed=self._start, text=''
      )
      self._bar.start()
    return self

  def __exit__(self, *exception: Any) -> None:
    if self._bar is not None:
      self._bar.stop()

  def update(self, done: int, text: str = '') -> None:
    """Shows that `done` steps are done, and a text about them."""
    now = time.monotonic()
    rate = (done - self._start) / max(now - self._started, 1e-9)
    if self._bar is not None:
      text = f'{text}  {rate:.3g}/s'.strip()
      self._bar.update(self._task, completed=done, text=text)
      return
    is_last = done == self._total and not self._is_brief
    share = _SHARE_BETWEEN_LINES * (now - self._started)
    is_due = now - self._printed >= max(_SECONDS_BETWEEN_LINES, share)
    if jax.process_index() or not (is_due or is_last):
      return
    self._printed = now
    total = '' if self._total is None else f'/{self._total}'
    parts = [f'{self._name}: {done}{total}', text, f'{rate:.3g}/s']
    if self._total is not None:
      parts.append(f'{_duration((self._total - done) / rate)} left')
    line = '  '.join(filter(None, parts))
    print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
  """'45 s', '12 min', '3 h 5 min'."""
  if seconds < 120:
    return f'{seconds:.0f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min'
