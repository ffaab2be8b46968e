"""How the models of a study were made: settings, sizes, steps, time."""

from __future__ import annotations

import ast
import collections
from collections.abc import Sequence
import dataclasses
from typing import Any

from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import naming

_SCALES = ((1e9, ' B'), (1e6, ' M'), (1e3, ' k'))


@dataclasses.dataclass
class Run:
  """A training run, over all seeds.

  Attributes:
    name: short, unique in the study.
    settings: as `training.resumption` describes them; {} where not recorded.
    sizes: 'parameters' and 'target_parameters', where recorded.
    is_distillation: whether it learned from a target.
    steps: seed -> steps done.
    seconds: seed -> training alone, without validation.
    wall_s: seed -> all of the run: loading, compilation, validation.
  """

  name: str
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  sizes: dict[str, float] = dataclasses.field(default_factory=dict)
  is_distillation: bool = False
  steps: dict[int, float] = dataclasses.field(default_factory=dict)
  seconds: dict[int, float] = dataclasses.field(
      default_factory=lambda: collections.defaultdict(float)
  )
  wall_s: dict[int, float] = dataclasses.field(
      default_factory=lambda: collections.defaultdict(float)
  )

  @property
  def divergence(self) -> str:
    """'cross-entropy', 'forward KL', ..; '' where not recorded."""
    name = str(self.settings.get('method.divergence', ''))
    name = name.rpartition('.')[2].replace('_', ' ')
    words = {'cross entropy': 'cross-entropy', 'jsd': 'JSD'}
    return words.get(name, name.replace(' kl', ' KL'))

  @property
  def text(self) -> str:
    """Whose text it learned from, and how that was sampled."""
    fixed = self.settings.get('method.fixed_fraction')
    if fixed is None:
      return ''
    draft = self.settings.get('method.draft_fraction', 1.0)
    temperature = self.settings.get('method.temperature', 1.0)
    shares = {
        'dataset': fixed,
        f'draft, T = {temperature:g}': (1 - fixed) * draft,
        f'target, T = {temperature:g}': (1 - fixed) * (1 - draft),
    }
    used = {name: share for name, share in shares.items() if share > 0}
    if len(used) == 1:
      return next(iter(used))
    return '; '.join(f'{share:.0%} {name}' for name, share in used.items())


def runs(lines: Sequence[measurements.Line]) -> list[Run]:
  """The runs among training lines, in the order of first appearance."""
  names = names_of(lines)
  found: dict[str, Run] = {}
  for line in lines:
    run = found.setdefault(name := names[run_of(line)], Run(name))
    metrics, seed = line['metrics'], line['provenance']['seed']
    run.is_distillation |= bool(line['target'])
    run.wall_s[seed] += line['provenance'].get('seconds', 0.0)
    if line['kind'] == 'run':
      run.settings = {
          key: _parsed(value) for key, value in line['decoding'].items()
      }
      run.sizes = {key: metric['value'] for key, metric in metrics.items()}
    elif 'loss' in metrics:
      run.steps[seed] = max(run.steps.get(seed, 0), metrics['step']['value'])
      rate = metrics.get('tokens_per_second', {'value': 0})
      if rate['value']:
        run.seconds[seed] += rate['count'] / rate['value']
  return list(found.values())


def names_of(lines: Sequence[measurements.Line]) -> dict[naming.Run, str]:
  """Run -> its name; lines of a row of a study are named after the row."""
  made: dict[naming.Run, Any] = {run_of(line): None for line in lines}
  for line in lines:
    if line['kind'] == 'run':
      # Checksums of models differ between seeds, as the models do.
      made[run_of(line)] = {
          key: value
          for key, value in line['decoding'].items()
          if not key.endswith('.content')
      }
  known = {run_of(line): line['row'] for line in lines if 'row' in line}
  return known | naming.names(
      {run: how for run, how in made.items() if run not in known}
  )


def run_of(line: measurements.Line) -> naming.Run:
  """The run that a training line belongs to."""
  folder, name = line.get('folder', ''), line['run']
  if folder.rpartition('/')[2] != name:  # a file of several runs
    folder = f'{folder}/{name}'
  return folder, line['provenance']['seed']


def number(value: float) -> str:
  """A number of parameters, in three digits."""
  for scale, unit in _SCALES:
    if value >= scale:
      return f'{value / scale:.3g}{unit}'
  return f'{value:.0f}'


def mean(values: dict[int, float]) -> float | None:
  """The mean over seeds."""
  return sum(values.values()) / len(values) if values else None


def _parsed(value: Any) -> Any:
  """A setting; those that are no literals are names."""
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return value
