"""Where the numbers of a report come from, and what their errors mean."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

from distillspec_jax.reporting import measurements

_CLEAR = (
    'Intervals are by Student’s t; where there is no difference, one in twenty'
    ' does not contain zero.'
)


def entries(lines: Sequence[measurements.Line]) -> list[tuple[str, str]]:
  """(what, values) over all lines."""
  sources = [line['provenance'] for line in lines]
  targets = (line['target'] for line in lines if line['target'])
  values = {
      'date': _period(lines),
      'device': _distinct(source['device'] for source in sources),
      'JAX': _distinct(source['jax'] for source in sources),
      'code': _distinct(source['git'] for source in sources),
      'configuration': _distinct(source['config_hash'] for source in sources),
      'seeds': _distinct(map(str, _seeds(lines))),
      'task': _distinct(line['task'] for line in lines),
      'split': _distinct(
          line['split'] for line in lines if line['kind'] != 'training'
      ),
      'target': _distinct(map(measurements.short_name, targets)),
      'time': _times(lines),
      'commands': _distinct(source.get('command', '') for source in sources),
      'results': f'{len(lines)} lines of results.jsonl',
  }
  return [(what, text) for what, text in values.items() if text]


def errors(
    lines: Sequence[measurements.Line], has_targets: bool = False
) -> str:
  """What the numbers average over, and what ± means.

  Args:
    lines: all results.
    has_targets: whether each seed has a target of its own.
  """
  if all(line['kind'] == 'plan' for line in lines):
    return 'Estimated by a compiler; nothing was run or measured.'
  measured = [line for line in lines if line['kind'] == 'acceptance'] or lines
  seeds = _seeds(measured)
  if len(seeds) > 1:
    return (
        f'Numbers measured with {len(seeds)} seeds'
        f' ({", ".join(map(str, seeds))}) are means over them; ± is one'
        ' standard error, over seeds and the examples that they share. '
        + (
            'Each seed has its own target. '
            if has_targets
            else 'The target is the same for all. '
        )
        + _CLEAR
    )
  return (
      f'One seed ({seeds[0]}); ± is one standard error over examples, or over'
      ' runs for times. It does not include the variation between seeds: it'
      f' holds for these very drafts. {_CLEAR}'
  )


def _seeds(lines):
  return sorted({line['provenance']['seed'] for line in lines})


def _distinct(values: Iterable[str]) -> str:
  return ', '.join(value for value in dict.fromkeys(values) if value)


def _times(lines):
  """Seconds of each kind of work, loading and compilation included."""
  seconds = collections.Counter()
  for line in lines:
    kind = line['kind'].replace('run', 'training').replace('_', ' ')
    seconds[kind] += line['provenance'].get('seconds', 0.0)
  return ', '.join(f'{name} {s:.0f} s' for name, s in seconds.items() if s)


def _period(lines):
  times = sorted(line['provenance']['time_utc'] for line in lines)
  first, last = (
      time.replace('T', ' ').removesuffix('Z')[:16]
      for time in (times[0], times[-1])
  )
  return f'{first} UTC' if first == last else f'{first} to {last} UTC'
