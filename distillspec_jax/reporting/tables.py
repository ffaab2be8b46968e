"""Rows -> tables: text in cells, with the definition of every column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from distillspec_jax.reporting import rows as rows_lib

_ERRORS = (
    '±',
    'one standard error: over seeds where there are several; else over repeated'
    ' measurements of a time; else over examples, or over runs of a time.',
)
# Settings that have a column only where they differ.
_RARE = ('top_k', 'top_p', 'verification', 'lenience', 'max_new_tokens')


class Table(NamedTuple):
  """A table for the page.

  Attributes:
    title: above it.
    header: names of the columns.
    body: rows of text.
    definitions: (term, meaning), below it.
  """

  title: str
  header: list[str]
  body: list[list[str]]
  definitions: list[tuple[str, str]]


class _Column(NamedTuple):
  name: str
  cell: Callable[[rows_lib.Row], str]


def tables(study: rows_lib.Study) -> list[Table]:
  """All tables that the study has data for."""
  made = (
      acceptance(study),
      latency(study),
      quality(study),
      plans(study),
      others(study),
  )
  return [table for table in made if table is not None]


def acceptance(study: rows_lib.Study) -> Table | None:
  """Acceptance rate and block efficiency, draft by draft."""
  found = _in_order(study.rows('acceptance'))
  columns = [
      _Column('draft', _draft),
      _Column('decoding', _temperature),
      _Column('block length', _setting('block_length')),
      *_rare(found),
      _Column('acceptance rate', _metric('acceptance_rate')),
      _Column('block efficiency', _metric('block_efficiency')),
      _Column('predicted', _metric('predicted_block_efficiency', 3, False)),
      _Column('gain', _metric('block_efficiency_gain')),
      *_sizes('block_efficiency', 'examples'),
  ]
  return _table(
      'Acceptance and block efficiency',
      found,
      columns,
      [
          (
              'acceptance rate',
              '1 minus the mean total variation distance between target and'
              ' draft, over tokens that have the target’s distribution: the'
              ' chance that a drafted token is accepted.',
          ),
          (
              'block efficiency',
              'tokens emitted per call of the target, the correction or bonus'
              ' token included; between 1 and block length + 1. Measured.',
          ),
          (
              'predicted',
              'block efficiency if every token were accepted independently at'
              ' the acceptance rate a: (1 − a^(G+1)) / (1 − a), where G is the'
              ' block length. Acceptances are not independent, so the'
              ' measured number may differ.',
          ),
          (
              'gain',
              'block efficiency more than by the other rule of verification, on'
              ' the same inputs; the error is that of the paired difference.',
          ),
          _ERRORS,
      ],
  )


def latency(study: rows_lib.Study) -> Table | None:
  """Tokens per second and speed-up, predicted and measured."""
  found = _in_order(study.rows('latency'))
  columns = [
      _Column('draft', _draft),
      _Column('batch', _setting('batch_size')),
      _Column('decoding', _temperature),
      _Column('block length', _setting('block_length')),
      *_rare(found),
      _Column('tokens/s', _metric('tokens_per_second', 0)),
      _Column('measured speed-up', _metric('measured_speedup', 2)),
      _Column('predicted', _metric('predicted_speedup', 2)),
      _Column(
          'predicted with verification',
          _metric('predicted_speedup_with_verify', 2),
      ),
      _Column('predicted by place', _metric('predicted_speedup_by_place', 2)),
      _Column('planned', _planned),
      _Column('block efficiency', _metric('block_efficiency', 2)),
      _Column('c', _metric('cost_ratio', 2)),
      _Column('v', _metric('verify_ratio', 2)),
      _Column('compilation, s', _metric('compile_s', 1)),
      *_sizes('tokens_per_second', 'runs'),
  ]
  return _table(
      'Wall clock',
      found,
      columns,
      [
          (
              'measured speed-up',
              'tokens per second over those of autoregressive decoding on the'
              ' same inputs, compilation apart: the median of paired runs.'
              ' Below 1, speculative decoding is slower.',
          ),
          (
              'predicted',
              'block efficiency / (c × block length + 1): what a draft step and'
              ' one target call would allow if checking a whole block took the'
              ' target no longer than one token.',
          ),
          (
              'predicted with verification',
              'block efficiency / (c × block length + v).',
          ),
          (
              'predicted by place',
              'what the planner predicts: from how often the token at each'
              ' place of a block is accepted (in a run with the longest block),'
              ' the lengths of answers, the slowest row of a batch, and the'
              ' measured costs of single steps and of the encoders.',
          ),
          (
              'planned',
              'the block length that the planner chooses for this draft, batch'
              ' and decoding, with the speed-up that it predicts; none: not to'
              ' speculate.',
          ),
          ('c', 'time of a step of the draft over that of the target.'),
          (
              'v',
              'time of a target call on a whole block over one on one token.',
          ),
          (
              'compilation, s',
              'seconds to compile the program, not part of any rate; near 0'
              ' where it was found compiled.',
          ),
          _ERRORS,
      ],
  )


def quality(study: rows_lib.Study) -> Table | None:
  """Task quality of the models' own answers."""
  found = study.rows('task_quality')
  body = [
      [
          str(row.decoding.get('model') or row.draft or 'target'),
          _temperature(row),
          name,
          value.text(),
          str(value.seeds),
          str(value.count),
      ]
      for row in found
      for name, value in row.metrics.items()
  ]
  if not body:
    return None
  return _filled(
      Table(
          'Task quality',
          ['model', 'decoding', 'metric', 'value', 'seeds', 'examples'],
          body,
          [
              (
                  'value',
                  'the metric of the task on each model’s own autoregressive'
                  ' answers. Speculative decoding emits the target’s, whatever'
                  ' the draft.',
              ),
              _ERRORS,
          ],
      )
  )


def plans(study: rows_lib.Study) -> Table | None:
  """What a run needs on TPU slices, a row a slice and setting."""
  columns = [
      _Column('draft', _draft),
      _Column('slice', _setting('topology')),
      _Column('mesh', _setting('mesh')),
      _Column('batch', _setting('batch_size')),
      _Column('micro-batches', _setting('micro_batches')),
      _Column('remat', _setting('remat')),
      _Column('memory, GiB', _scaled('step_memory_bytes', 2**-30, 2)),
      _Column('memory, %', _scaled('memory_share', 100, 0)),
      _Column('step, s', _metric('step_s', 3)),
      _Column('rollouts, s', _metric('rollout_s', 3)),
      _Column('MFU, %', _scaled('mfu', 100, 0)),
      _Column('token, ms', _scaled('token_s', 1e3, 2)),
      _Column('draft token, ms', _scaled('draft_step_s', 1e3, 2)),
      _Column('block, ms', _scaled('block_s', 1e3, 2)),
      _Column('speed-up', _speedups),
  ]
  return _table(
      'Plans for TPU slices',
      study.rows('plan'),
      columns,
      [
          ('mesh', 'chips along the axes data x fsdp x tensor.'),
          (
              'memory, GiB',
              'of a chip, that a training step needs at its peak, as the TPU'
              ' compiler lays it out. Nothing was run.',
          ),
          (
              'memory, %',
              'most that the step or a sampler needs, of what a chip has.',
          ),
          (
              'step, s',
              'predicted: what the TPU compiler expects of every instruction,'
              ' and what exchanges between chips take that it waits for.',
          ),
          ('rollouts, s', 'of the step: sampling the tokens it learns on.'),
          (
              'MFU, %',
              'FLOPs of the target forward, of the draft forward and backward,'
              ' by formula, over the chip’s peak in the step without rollouts.',
          ),
          (
              'token, ms',
              'a step of the target in autoregressive sampling of the batch.',
          ),
          ('draft token, ms', 'a step of the draft.'),
          (
              'block, ms',
              'a block of speculative sampling: drafts and the target’s call.',
          ),
          (
              'speed-up',
              'of speculative over autoregressive sampling, predicted for the'
              ' acceptance rate before the colon.',
          ),
      ],
  )


def others(study: rows_lib.Study) -> Table | None:
  """Whatever has no table of its own, so that nothing recorded is hidden."""
  body = [
      [
          line['kind'],
          line['run'],
          line['draft'] or '–',
          name,
          f'{metric["value"]:.6g}',
          metric['unit'],
      ]
      for line in study.lines
      if line['kind'] == 'certificate'
      for name, metric in line['metrics'].items()
  ]
  if not body:
    return None
  return Table(
      'Other results',
      ['kind', 'run', 'draft', 'metric', 'value', 'unit'],
      body,
      [('unit', '1 stands for a number without a unit.')],
  )


def _table(
    title: str,
    found: Sequence[rows_lib.Row],
    columns: Sequence[_Column],
    definitions: list[tuple[str, str]],
) -> Table | None:
  if not found:
    return None
  body = [[column.cell(row) for column in columns] for row in found]
  header = [column.name for column in columns]
  return _filled(Table(title, header, body, definitions))


def _filled(table: Table) -> Table:
  """Leaves out columns in which every cell is a dash, and their definitions."""
  kept = [
      i
      for i in range(len(table.header))
      if any(row[i] != '–' for row in table.body)
  ]
  header = [table.header[i] for i in kept]
  gone = set(table.header) - set(header)
  return table._replace(
      header=header,
      body=[[row[i] for i in kept] for row in table.body],
      definitions=[
          (term, meaning)
          for term, meaning in table.definitions
          if term not in gone
      ],
  )


def _in_order(found: Sequence[rows_lib.Row]) -> list[rows_lib.Row]:
  """Rows that are to be compared stand next to each other."""
  names = [None, *rows_lib.drafts(found)]

  def key(row):
    settings = row.decoding
    return (
        settings.get('batch_size') or 0 if 'tokens_per_second' in row.metrics
        else 0,
        settings.get('temperature') or 0.0,
        settings.get('block_length') or 0,
        names.index(row.draft),
    )  # fmt: skip

  return sorted(found, key=key)


def _planned(row: rows_lib.Row) -> str:
  length = row.metrics.get('planned_block_length')
  speedup = row.metrics.get('planned_speedup')
  if length is None or speedup is None:
    return '–'
  # Over several seeds the choices may differ.
  return f'{length.value:g}: {speedup.value:.2f}' if length.value else 'none'


def _draft(row: rows_lib.Row) -> str:
  return row.draft or 'none (autoregressive)'


def _temperature(row: rows_lib.Row) -> str:
  temperature = row.decoding.get('temperature')
  return '–' if temperature is None else rows_lib.temperature_name(temperature)


def _setting(name: str) -> Callable[[rows_lib.Row], str]:
  def cell(row):
    value = row.decoding.get(name)
    return '–' if value is None else str(value)

  return cell


def _metric(
    name: str, digits: int = 3, error: bool = True
) -> Callable[[rows_lib.Row], str]:
  def cell(row):
    value = row.metrics.get(name)
    if value is None:
      return '–'
    return (value if error else value._replace(error=None)).text(digits)

  return cell


def _scaled(
    name: str, factor: float, digits: int
) -> Callable[[rows_lib.Row], str]:
  def cell(row):
    value = row.metrics.get(name)
    return '–' if value is None else f'{factor * value.value:,.{digits}f}'

  return cell


def _speedups(row: rows_lib.Row) -> str:
  start = 'speedup_at_'
  found = {
      name.removeprefix(start): value.value
      for name, value in row.metrics.items()
      if name.startswith(start)
  }
  return ', '.join(f'{k}: {v:.2f}' for k, v in found.items()) or '–'


def _sizes(metric: str, unit: str) -> list[_Column]:
  """Columns of the number of seeds, and of what was counted in each."""

  def of(entry):
    def cell(row):
      value = row.metrics.get(metric)
      return '–' if value is None else str(getattr(value, entry))

    return cell

  return [_Column('seeds', of('seeds')), _Column(unit, of('count'))]


def _rare(found: Iterable[rows_lib.Row]) -> list[_Column]:
  """Columns of settings that are not the same in all rows that have them."""
  speculative = [row for row in found if row.draft is not None]
  return [
      _Column(name.replace('_', ' '), _setting(name))
      for name in _RARE
      if len({repr(row.decoding.get(name)) for row in speculative}) > 1
  ]
