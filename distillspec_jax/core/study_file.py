"""study.json: what the runs of a study are, and where each one's results lie.

The file lies in the study's folder and is written, complete, after each stage.
All folders in it are relative to it, but for models that were given.

  {
    "kind": "experiment" | "grid" | "garden" | "transfer" | "lossy",
    "title": text for a heading,
    "command": the command line,
    "axes": names of the labels, in order; those of a heat map first,
    "stages": {"total": 24, "done": 5, "failed": 1},
    "averages": [{"name", "metric", "value", "standard_error", "definition"}],
    "rows": [
      {
        "name": "forward_kl, draft"; the same for all seeds,
        "labels": {axis: value}; a row that an axis does not concern has no
            label for it (such as the fine-tuned draft: no "divergence"),
        "seed": of the draft,
        "target_seed": of the target; null where the target was given,
        "folder": of the row's model,
        "results": folders that hold a results.jsonl about the row, once they
            are there,
        "lines": {role: {entry: value}}: which lines of these results are the
            row's; {} for all. Roles are "efficiency", "latency" and "quality";
            an entry is one of the line's `decoding`, or "kind" or "draft",
        "control": name of the row with the same seed and labels that it is
            compared with, or null,
        "seconds": of training alone, that of the row's own model; null where
            it was given, or is not trained yet,
        "failed": null, or one line that says what failed
      }
    ]
  }
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

from distillspec_jax.core import errors

FILE = 'study.json'
KINDS = ('experiment', 'grid', 'garden', 'transfer', 'lossy')
_ROW: dict[str, type | tuple[type, ...]] = {
    'name': str,
    'labels': dict,
    'seed': int,
    'target_seed': (int, type(None)),
    'folder': str,
    'results': list,
    'lines': dict,
    'control': (str, type(None)),
    'seconds': (int, float, type(None)),
    'failed': (str, type(None)),
}
_STUDY: dict[str, type] = {
    'kind': str,
    'title': str,
    'command': str,
    'axes': list,
    'stages': dict,
    'averages': list,
    'rows': list,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One row of a study and seed; the module describes the entries."""

  name: str
  labels: dict[str, Any]
  seed: int
  target_seed: int | None
  folder: str
  results: Sequence[str]
  lines: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  control: str | None = None
  seconds: float | None = None
  failed: str | None = None


def write(folder: pathlib.Path, study: dict[str, Any]) -> None:
  """Writes FOLDER/study.json, which is complete, or as it was before."""
  temporary = folder / f'{FILE}.new'
  rows = [dataclasses.asdict(row) for row in study['rows']]
  temporary.write_text(
      json.dumps({**study, 'rows': rows}, indent=1), encoding='utf-8'
  )
  os.replace(temporary, folder / FILE)


def read(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
  """The study in a folder, with rows as `Row`; None where there is none.

  Raises:
    UserError: the file is not JSON, or not a study.
  """
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    return None
  try:
    study = json.loads(path.read_text(encoding='utf-8'))
    fault = _fault(study)
  except (ValueError, RecursionError) as error:
    fault = f'it is not JSON ({error})'
  if fault:
    raise errors.UserError(
        f'{path} is not the file of a study: {fault}. Start the study again,'
        ' which writes it anew.'
    )
  rows = [Row(**{name: row[name] for name in _ROW}) for row in study['rows']]
  return {**study, 'rows': rows}


def _fault(study: Any) -> str:
  """Why a parsed file is no study; '' if it is one."""
  fault = _fault_of(study, _STUDY)
  if fault:
    return fault
  if study['kind'] not in KINDS:
    return f"'kind' is {study['kind']!r}, not one of {', '.join(KINDS)}"
  faults = (
      (number, _fault_of(row, _ROW))
      for number, row in enumerate(study['rows'], start=1)
  )
  return next((f'row {n}: {text}' for n, text in faults if text), '')


def _fault_of(value: Any, entries: dict[str, Any]) -> str:
  if not isinstance(value, dict):
    return f'it is {type(value).__name__}, not an object'
  for name, kind in entries.items():
    if name not in value:
      return f'{name!r} is missing'
    if not isinstance(value[name], kind):
      return f'{name!r} is {str(value[name])[:60]!r}'
  return ''
