"""Where the numbers of a report come from, and what their errors mean."""

from __future__ import annotations

from collections.abc import Sequence

from distillspec_jax.reporting import rows as rows_lib


def entries(lines: Sequence[rows_lib.Line]) -> list[tuple[str, str]]:
  """(what, where from) of all lines together."""
  found = [
      ('measured', _period(lines)),
      ('device', _different(lines, 'device')),
      ('jax', _different(lines, 'jax')),
      ('code', _different(lines, 'git')),
      ('configuration', _different(lines, 'config_hash')),
      ('seeds', ', '.join(map(str, _seeds(lines)))),
      ('task', ', '.join(dict.fromkeys(line['task'] for line in lines))),
      (
          'split',
          ', '.join(
              dict.fromkeys(
                  line['split'] for line in lines if line['kind'] != 'training'
              )
          ),
      ),
      (
          'target',
          ', '.join(
              dict.fromkeys(
                  rows_lib.short_name(line['target'])
                  for line in lines
                  if line['target']
              )
          ),
      ),
      ('results', f'{len(lines)} lines of results.jsonl'),
  ]
  return [(what, text) for what, text in found if text]


def errors(lines: Sequence[rows_lib.Line]) -> str:
  """One sentence: what is averaged, and what ± means."""
  if all(line['kind'] == 'plan' for line in lines):
    return 'Planned with a compiler; nothing was run or measured.'
  measured = [line for line in lines if line['kind'] == 'acceptance'] or lines
  seeds = _seeds(measured)
  if len(seeds) > 1:
    return (
        f'Numbers measured with {len(seeds)} seeds'
        f' ({", ".join(map(str, seeds))}) are means; ± is one standard error'
        ' over seeds.'
    )
  return (
      f'One seed ({seeds[0]}); ± is one standard error over examples, for times'
      ' over runs. How much another seed would change is not known from this.'
  )


def _seeds(lines: Sequence[rows_lib.Line]) -> list[int]:
  return sorted({line['provenance']['seed'] for line in lines})


def _different(lines: Sequence[rows_lib.Line], name: str) -> str:
  values = dict.fromkeys(str(line['provenance'][name]) for line in lines)
  return ', '.join(value for value in values if value)


def _period(lines: Sequence[rows_lib.Line]) -> str:
  times = sorted(line['provenance']['time_utc'] for line in lines)
  first, last = (
      time.replace('T', ' ').removesuffix('Z')[:16]
      for time in (times[0], times[-1])
  )
  return f'{first} UTC' if first == last else f'{first} to {last} UTC'
