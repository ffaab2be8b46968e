"""results.jsonl: one line of one schema for every measurement.

A line names what was measured (`kind`), the pair of models, task and split, the
decoding, the metrics with their standard errors, and the provenance (code,
configuration, seed, device, time). Tables, figures and the report are drawn
from these lines alone. Keys of `decoding` are those of `Decoding.describe`:

  temperature, top_k, top_p, max_new_tokens, batch_size
  block_length   tokens drafted per target call; None if autoregressive
  paths          drafted side by side
  adaptive       None, or the rule that ends a draft early: 'confidence(0.4)'
  parallel       True if one call of the draft proposes a block, otherwise None
  verifier       'token', 'block', 'lenient(linear, 0.5)'; None likewise
  lossless       whether the verifier is; None likewise
  model          of task quality: 'target', the draft's name, or 'pair' for
                 speculative decoding

Of a line of kind 'run', which tells how a model was made, they are the settings
of its training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import datetime
import functools
import json
import math
import os
import pathlib
import subprocess
import time
from typing import Any, NamedTuple

import numpy as np

from distillspec_jax.core import check
from distillspec_jax.core import configuration
from distillspec_jax.core import errors

FILE = 'results.jsonl'
_last_line = time.monotonic()
KINDS = (
    'run',
    'training',
    'acceptance',
    'task_quality',
    'latency',
    'certificate',
    'plan',
)

# The entries of a line and their types.
_ENTRIES: dict[str, type | tuple[type, ...]] = {
    'kind': str,
    'run': str,
    'target': (str, type(None)),
    'draft': (str, type(None)),
    'task': str,
    'split': str,
    'decoding': (dict, type(None)),
    'metrics': dict,
    'provenance': dict,
}
_PROVENANCE: dict[str, type] = {
    'git': object,
    'config_hash': object,
    'seed': int,
    'device': object,
    'jax': object,
    'time_utc': str,
}
_NUMBERS = ('temperature', 'block_length', 'batch_size')  # of a decoding


# Lines of each file that are written together, if they are.
_together: dict[pathlib.Path, list[str]] | None = None


class Metric(NamedTuple):
  """A measured number.

  Attributes:
    value: in `unit`; one that is not finite is null in the file, and nan when
      it is read.
    standard_error: over examples, or None where there is none.
    count: number of examples, or of repetitions of a time.
    unit: 'nats/token', 'tokens/block', 's'; '1' for a ratio.
  """

  value: float
  standard_error: float | None
  count: int  # type: ignore[assignment]
  unit: str


class Examples(NamedTuple):
  """What single examples contribute to metrics, so that others can be paired.

  Attributes:
    inputs: identifies the inputs and their order.
    metrics: name -> columns [n]: (totals, counts) of a ratio of sums, or
      (values,) of a mean. Those that are not finite are not written.
  """

  inputs: str
  metrics: dict[str, tuple[np.ndarray, ...]]


def write(
    folder: str | os.PathLike[str],
    kind: str,
    *,
    target: str | None,
    draft: str | None,
    task: str,
    split: str,
    decoding: dict[str, Any] | None,
    metrics: dict[str, Metric],
    seed: int,
    draft_folder: str | None = None,
    examples: Examples | None = None,
) -> dict[str, Any]:
  """Appends one line and returns it; only the first process writes.

  Args:
    folder: of the run, whose name is the run's; created if it is absent.
    kind: one of `KINDS`.
    target: name of the target, or None.
    draft: name of the draft, or None.
    task: name of the task.
    split: of the task.
    decoding: its settings, or None if nothing was decoded.
    metrics: what was measured, by name.
    seed: of the measurement.
    draft_folder: of the draft; drafts with one name are told apart by it.
    examples: the values of single examples.

  Raises:
    ValueError: unknown kind, no metrics, or a value that is not a number.
  """
  check.one_of(KINDS, kind=kind)
  if not metrics:
    raise ValueError(f'A result of kind {kind!r} needs at least one metric.')
  path = pathlib.Path(folder) / FILE
  if draft_folder is not None and os.path.isdir(draft_folder):
    draft_folder = os.path.abspath(draft_folder)  # from wherever it was named
  line = {
      'kind': kind,
      'run': path.parent.name,
      'target': target,
      'draft': draft,
      'draft_folder': draft_folder,
      'task': task,
      'split': split,
      'decoding': decoding,
      'metrics': {
          name: {
              'value': _number(name, metric.value),
              'standard_error': _error(name, metric.standard_error),
              'count': int(metric.count),
              'unit': metric.unit,
          }
          for name, metric in metrics.items()
      },
      'provenance': provenance(seed),
  }
  if examples is not None:
    line['examples'] = {
        'inputs': examples.inputs,
        'metrics': {
            name: [np.round(column, 6).tolist() for column in columns]
            for name, columns in examples.metrics.items()
            if all(np.all(np.isfinite(column)) for column in columns)
        },
    }
  append(path, [_without_infinities(line)])
  return line


def append(path: pathlib.Path, lines: Sequence[dict[str, Any]]) -> None:
  """Appends objects to a file of JSON lines; only the first process writes.

  Within `together` they are there at its end.
  """
  if not _is_writer():
    return
  texts = [json.dumps(line, allow_nan=False) for line in lines]
  if _together is not None:
    _together.setdefault(path, []).extend(texts)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  _repair_end(path)
  # One system call: a process that dies truncates at most the last line.
  with path.open('ab', buffering=0) as file:
    file.write(''.join(f'{text}\n' for text in texts).encode())


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Lines that are written within it are there at its end: all, or none.

  A measurement that was killed and started again then has no line twice.
  """
  global _together
  _together = {}
  try:
    yield
    written = _together
  finally:
    _together = None
  for path, texts in written.items():
    path.parent.mkdir(parents=True, exist_ok=True)
    _repair_end(path)
    lines = path.read_text(encoding='utf-8') if path.exists() else ''
    _replace(path, lines + ''.join(f'{text}\n' for text in texts))


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The lines of a file, without a truncated last line.

  Raises:
    UserError: the file is absent, or a line is not JSON or not a result.
  """
  lines = []
  for number, parsed in json_lines(path):
    fault = _fault(parsed)
    if fault:
      raise errors.UserError(
          f'{path}, line {number} is not a result: {fault}. Remove the line.'
      )
    for metric in parsed['metrics'].values():
      if metric['value'] is None:
        metric['value'] = math.nan
    lines.append(parsed)
  return lines


def json_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
  """Number and content of each line, without a truncated last line.

  Raises:
    UserError: the file is absent, or a line is not JSON.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f'There is no results file {path}.')
  # Not `splitlines`, which also splits at characters that JSON may contain.
  raw = path.read_bytes().split(b'\n')
  for number, line in enumerate(raw, start=1):
    if not line.strip():
      continue
    try:
      parsed = json.loads(line)
    except (ValueError, RecursionError) as error:  # of JSON, or of UTF-8
      if number == len(raw):
        break
      raise errors.UserError(
          f'{path}, line {number} is not JSON ({error}). Remove the line.'
      ) from error
    yield number, parsed


def drop_after(folder: str | os.PathLike[str], step: int) -> None:
  """Removes the run's training lines after `step`, which will be repeated."""
  path = pathlib.Path(folder) / FILE
  if not _is_writer() or not path.exists():
    return
  kept = [
      line
      for line in read(path)
      if line['kind'] != 'training'
      or line['run'] != path.parent.name
      or line['metrics']['step']['value'] <= step
  ]
  texts = [
      json.dumps(_without_infinities(line), allow_nan=False) for line in kept
  ]
  _replace(path, ''.join(f'{text}\n' for text in texts))


def _replace(path: pathlib.Path, text: str) -> None:
  temporary = path.with_name(path.name + '.new')
  temporary.write_text(text, encoding='utf-8')
  os.replace(temporary, path)


def provenance(seed: int) -> dict[str, Any]:
  """Code, configuration, seed, device and time of a measurement."""
  import jax  # Not at the top: reporting reads results without JAX.

  now = datetime.datetime.now(datetime.UTC)
  return {
      'git': _git(),
      'config_hash': configuration.current().hash,
      'seed': int(seed),
      'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'jax': jax.__version__,
      'time_utc': now.strftime('%Y-%m-%dT%H:%M:%SZ'),
      'seconds': round(_lap(), 3),  # since this process's previous line
      'command': configuration.command(),
  }


def _lap() -> float:
  global _last_line
  before, _last_line = _last_line, time.monotonic()
  return _last_line - before


def _is_writer() -> bool:
  import jax  # As in `provenance`.

  return jax.process_index() == 0


@functools.cache
def _git() -> str:
  """The commit of the source tree; '' outside a checkout."""
  here = pathlib.Path(__file__).resolve().parent
  try:
    done = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=10'],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return ''
  return done.stdout.strip() if done.returncode == 0 else ''


def _without_infinities(line: dict[str, Any]) -> dict[str, Any]:
  """The line for JSON, which knows no nan and no infinity."""
  metrics = {
      name: metric
      if metric['value'] is not None and math.isfinite(metric['value'])
      else {**metric, 'value': None}
      for name, metric in line['metrics'].items()
  }
  return {**line, 'metrics': metrics}


def _number(name: str, value: Any) -> float:
  if isinstance(value, (str, bytes)) or value is None:
    raise ValueError(f'Metric {name!r} is {value!r}, not a number.')
  return float(value)


def _error(name: str, value: Any) -> float | None:
  """A standard error; None unless finite: over one example it is nan."""
  if value is None or not math.isfinite(_number(name, value)):
    return None
  return float(value)


def _repair_end(path: pathlib.Path) -> None:
  """Makes the file end with a complete line, so that one can be appended.

  A last line without a newline is kept if it is JSON (an editor left out the
  newline), and removed otherwise (a dying process truncated it).
  """
  if not path.exists():
    return
  with path.open('rb+') as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read() in (b'', b'\n'):
      return
    file.seek(0)
    content = file.read()
    start = content.rfind(b'\n') + 1
    try:
      json.loads(content[start:])
    except ValueError:
      file.truncate(start)
    else:
      file.write(b'\n')


def _fault(line: Any) -> str:
  """Why a parsed line is not a result; '' if it is one."""
  if not isinstance(line, dict):
    return f'it is {type(line).__name__}, not an object'
  for name, kind in _ENTRIES.items():
    if name not in line:
      return f'{name!r} is missing'
    if not isinstance(line[name], kind):
      return f'{name!r} is {line[name]!r}'
  if line['kind'] not in KINDS:
    return f"'kind' is {line['kind']!r}, not one of {', '.join(KINDS)}"
  for name, metric in line['metrics'].items():
    if not isinstance(metric, dict):
      return f'metric {name!r} is {metric!r}'
    for entry in Metric._fields:
      if entry not in metric:
        return f'metric {name!r} lacks {entry!r}'
    if not isinstance(metric['value'], (int, float, type(None))):
      return f'metric {name!r} has the value {metric["value"]!r}'
    if not isinstance(metric['standard_error'], (int, float, type(None))):
      return f'metric {name!r} has the error {metric["standard_error"]!r}'
  if line['kind'] == 'training' and 'step' not in line['metrics']:
    return "its kind is 'training' but it has no metric 'step'"
  examples = line.get('examples', {'inputs': '', 'metrics': {}})
  try:
    columns = [examples['inputs'], *map(list, examples['metrics'].values())]
    lengths = [{len(column) for column in each} for each in columns[1:]]
  except (TypeError, KeyError, AttributeError):
    return f"'examples' is {str(examples)[:60]}"
  if any(len(each) != 1 for each in lengths):
    return "columns of 'examples' are of different lengths"
  for name, kind in _PROVENANCE.items():
    if name not in line['provenance']:
      return f'its provenance lacks {name!r}'
    if not isinstance(line['provenance'][name], kind):
      return f'its {name!r} is {check.shown(line["provenance"][name])}'
  for name in _NUMBERS:
    value = (line['decoding'] or {}).get(name)
    if not isinstance(value, (int, float, type(None))):
      return f'its {name!r} is {check.shown(value)}'
  try:
    json.dumps(line, ensure_ascii=False).encode()
  except UnicodeEncodeError:
    return 'it has half of a surrogate pair, which is not Unicode'
  return ''
