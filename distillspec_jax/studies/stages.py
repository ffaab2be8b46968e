"""Stages: what a study does, one after another, each into its own folder.

A stage that is done is not repeated unless what it was made of has changed; one
that was stopped resumes, or is started anew. One that fails is recorded, what
needs it is left out, and the others are done; started again, the study tries it
again. FOLDER/stage.json is the record:

  {"made_of": {..}, "seconds": 12.3, "failed": null}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import sys
import time
import traceback
from typing import Any

import jax

from distillspec_jax.core import errors
from distillspec_jax.distributed import hosts

RECORD = 'stage.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One piece of work.

  Attributes:
    name: its folder, relative to the study's, such as 'seed_0/distilled'.
    what: 'training', 'evaluation', 'benchmark'; for people.
    work: gets the folder to write into.
    made_of: everything that decides the outcome, as JSON; None: not known yet.
    needs: names of stages that must be done before.
    is_resumable: whether `work` itself resumes in a folder that it left.
        Otherwise the folder is complete or absent.
  """

  name: str
  what: str
  work: Callable[[pathlib.Path], Any]
  made_of: Callable[[], dict[str, Any] | None]
  needs: tuple[str, ...] = ()
  is_resumable: bool = False

  def record(self, root: pathlib.Path) -> dict[str, Any] | None:
    """What stage.json says; None where there is none that can be read."""
    try:
      record = json.loads((root / self.name / RECORD).read_text())
    except (OSError, ValueError):
      return None
    return record if isinstance(record, dict) else None

  def is_done(self, root: pathlib.Path) -> bool:
    """Whether it is done, with what it would be made of today."""
    record, folder = self.record(root), root / self.name
    if record is None:
      # Measurements of an older version: complete, as they have their name.
      return not self.is_resumable and folder.is_dir()
    if record.get('failed') is not None:
      return False
    return record.get('made_of') == _as_json(self.made_of())


def run(
    root: pathlib.Path,
    stages: Sequence[Stage],
    changed: Callable[[dict[str, str]], None] = lambda failed: None,
) -> dict[str, str]:
  """Does all stages, in order; returns name -> why, of those that failed.

  Args:
    root: the study's folder.
    stages: each after those that it needs.
    changed: called after each, with what has failed so far.

  Raises:
    Exception: of a stage without which nothing can be measured; and of any
      stage where there are several hosts, which fail together.
  """
  failed: dict[str, str] = {}
  for number, stage in enumerate(stages, start=1):
    cause = next((name for name in stage.needs if name in failed), None)
    if cause is not None:
      failed[stage.name] = failed[cause]
      changed(failed)
      continue
    try:
      if stage.is_done(root):
        continue
      _say(f'stage {number} of {len(stages)}: {stage.name} ({stage.what})')
      _do(root, stage)
    except Exception as error:
      failed[stage.name] = f'{stage.name}: {_line(error)}'
      if jax.process_count() > 1 or _all_need(stage, stages):
        raise
      if not isinstance(error, errors.UserError | errors.Failed):
        traceback.print_exc()
      _say(f'{stage.name} failed: {_line(error)}')
      _record(root / stage.name, failed=_line(error))
    changed(failed)
  return failed


def states(root: pathlib.Path, stages: Sequence[Stage]) -> dict[str, str]:
  """Name -> 'done', 'failed', 'started' or 'to do'; nothing is written."""
  found: dict[str, str] = {}
  for stage in stages:
    record = stage.record(root)
    if all(found[name] == 'done' for name in stage.needs) and stage.is_done(
        root
    ):
      found[stage.name] = 'done'
    elif record is not None and record.get('failed') is not None:
      found[stage.name] = 'failed'
    else:
      is_started = stage.is_resumable and (root / stage.name).is_dir()
      found[stage.name] = 'started' if is_started else 'to do'
  return found


def _do(root: pathlib.Path, stage: Stage) -> None:
  folder, began = root / stage.name, time.monotonic()
  if stage.is_resumable:
    stage.work(folder)
    if hosts.is_first():
      _record(folder, stage.made_of(), time.monotonic() - began)
    return
  record = stage.record(root)
  if hosts.is_first() and record is not None and record.get('failed') is None:
    _say(f'{folder}: measured again, as what it was made of has changed.')
  # The folder's name stays, because results hold it.
  temporary = folder.parent / '.incomplete' / folder.name
  if hosts.is_first():
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
  hosts.wait_for_all('the folder for results')
  try:
    stage.work(temporary)
    if hosts.is_first():
      _record(temporary, stage.made_of(), time.monotonic() - began)
      os.replace(temporary, folder)
  except Exception:  # after a kill it stays; the next start removes it
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  if hosts.is_first():
    with contextlib.suppress(OSError):  # a killed measurement lies in it
      temporary.parent.rmdir()


def _record(
    folder: pathlib.Path,
    made_of: dict[str, Any] | None = None,
    seconds: float = 0.0,
    failed: str | None = None,
) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  record = {'made_of': made_of, 'seconds': round(seconds, 3), 'failed': failed}
  temporary = folder / f'{RECORD}.new'
  temporary.write_text(json.dumps(record, indent=1))
  os.replace(temporary, folder / RECORD)


def _all_need(stage: Stage, stages: Sequence[Stage]) -> bool:
  """Whether nothing can be measured without the stage."""
  blocked = {stage.name}
  for other in stages:
    if not blocked.isdisjoint(other.needs):
      blocked.add(other.name)
  measured = [other for other in stages if not other.is_resumable]
  return all(other.name in blocked for other in measured)


def _as_json(value: Any) -> Any:
  return json.loads(json.dumps(value))


def _line(error: BaseException) -> str:
  """An error on one line, without the calls that gin adds to it."""
  text = str(error).split('In call to configurable')[0]
  text = ' '.join(text.split())[:500]
  if isinstance(error, errors.UserError | errors.Failed) and text:
    return text
  return f'{type(error).__name__}: {text}'


def _say(text: str) -> None:
  if hosts.is_first():
    print(text, file=sys.stderr, flush=True)
