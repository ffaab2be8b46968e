"""results.jsonl: every measured number of the project, one schema, one line.

A line says what was measured (`kind`), on which pair, task and split, with
which decoding, the metrics with their standard errors, and where it comes from
(code, configuration, seed, device, time). Tables, figures and the page are
drawn from these lines alone.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import pathlib
import subprocess
from typing import Any, NamedTuple

from distillspec_jax.core import errors

KINDS = (
    'training',
    'acceptance',
    'task_quality',
    'latency',
    'certificate',
    'plan',
)


class Metric(NamedTuple):
  """A measured number.

  Attributes:
    value: in `unit`.
    standard_error: over examples, or None where there is none.
    count: of examples, or of what the unit says.
    unit: 'nats/token', 'tokens/block', 's'; '1' for a ratio.
  """

  value: float
  standard_error: float | None
  count: int
  unit: str


def write(
    path: str | os.PathLike[str],
    kind: str,
    *,
    run: str,
    target: str | None,
    draft: str | None,
    task: str,
    split: str,
    decoding: dict[str, Any] | None,
    metrics: dict[str, Metric],
    seed: int,
    config_hash: str = '',
) -> dict[str, Any]:
  """Appends one line and returns it.

  Raises:
    ValueError: unknown kind, no metrics, or a value that is not a number.
  """
  if kind not in KINDS:
    raise ValueError(f'Unknown kind of result {kind!r}; use one of {KINDS}.')
  if not metrics:
    raise ValueError(f'A result of kind {kind!r} needs at least one metric.')
  line = {
      'kind': kind,
      'run': run,
      'target': target,
      'draft': draft,
      'task': task,
      'split': split,
      'decoding': decoding,
      'metrics': {
          name: {
              'value': _number(name, metric.value),
              'standard_error': None
              if metric.standard_error is None
              else _number(name, metric.standard_error),
              'count': int(metric.count),
              'unit': metric.unit,
          }
          for name, metric in metrics.items()
      },
      'provenance': provenance(seed, config_hash),
  }
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # One write call, so that a process that dies leaves whole lines but one.
  with path.open('a') as file:
    file.write(json.dumps(line, allow_nan=True) + '\n')
    file.flush()
  return line


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The lines of a file; a last line that was torn off is left out.

  Raises:
    UserError: the file is absent, or a line but the last is not JSON.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f'There is no file of results {path}.')
  text = path.read_text()
  lines = []
  numbered = list(enumerate(text.splitlines(), start=1))
  for number, line in numbered:
    try:
      lines.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number == len(numbered) and not text.endswith('\n'):
        break
      raise errors.UserError(
          f'{path}, line {number} is not JSON ({error}). Remove the line.'
      ) from error
  return lines


def drop_after(path: str | os.PathLike[str], run: str, step: int) -> None:
  """Removes the training lines of `run` after `step`, to be done again."""
  path = pathlib.Path(path)
  kept = [
      line
      for line in read(path)
      if line['kind'] != 'training'
      or line['run'] != run
      or line['metrics']['step']['value'] <= step
  ]
  beside = path.with_name(path.name + '.new')
  beside.write_text(''.join(json.dumps(line) + '\n' for line in kept))
  os.replace(beside, path)


def provenance(seed: int, config_hash: str = '') -> dict[str, Any]:
  """Where a number comes from: code, configuration, seed, device, time."""
  import jax  # reporting reads results without it

  now = datetime.datetime.now(datetime.UTC)
  return {
      'git': _git(),
      'config_hash': config_hash,
      'seed': int(seed),
      'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'jax': jax.__version__,
      'time_utc': now.strftime('%Y-%m-%dT%H:%M:%SZ'),
  }


@functools.cache
def _git() -> str:
  """The commit of the source tree, '' where it is not a checkout."""
  here = pathlib.Path(__file__).resolve().parent
  try:
    found = subprocess.run(
        ['git', 'describe', '--always', '--dirty', '--abbrev=10'],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return ''
  return found.stdout.strip() if found.returncode == 0 else ''


def _number(name: str, value: Any) -> float:
  if isinstance(value, (str, bytes)) or value is None:
    raise ValueError(f'Metric {name!r} is {value!r}, not a number.')
  return float(value)
