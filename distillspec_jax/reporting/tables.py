"""Measurements -> tables of text, with definitions of their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import runs as runs_lib

_NONE = '–'


class Table(NamedTuple):
  """A table for the page.

  Attributes:
    title: above it.
    header: names of the columns.
    body: rows of text.
  """

  title: str
  header: list[str]
  body: list[list[str]]

  @property
  def definitions(self) -> list[tuple[str, str]]:
    """(term, meaning) of the columns that need one, for below the table."""
    terms = list(self.header)
    if any('±' in cell for row in self.body for cell in row):
      terms.append('±')
    return [(term, _MEANINGS[term]) for term in terms if term in _MEANINGS]


def tables(study: measurements.Study) -> list[Table]:
  """All tables that the study has data for."""
  measured = {
      kind: _in_order(study.measurements(kind))
      for kind in ('acceptance', 'latency', 'task_quality', 'plan')
  }
  lossy = _in_order(measurements.trade_off(study))
  drawn = (
      _table(
          'Acceptance and block efficiency',
          measured['acceptance'],
          (
              *_decoding(measured['acceptance']),
              ('expected acceptance', 'expected_acceptance', 3),
              ('tokens per target call', 'block_efficiency', 3),
              ('uncut', 'uncut_block_efficiency', 3),
              ('predicted', 'predicted_block_efficiency', 3),
              ('gain', 'block_efficiency_gain', 3),
              *_sizes('block_efficiency', 'examples'),
          ),
      ),
      _table(
          'Lossy verification',
          lossy,
          (
              *_decoding(lossy),
              ('tokens per target call', 'block_efficiency', 3),
              *_qualities(lossy),
          ),
      ),
      _table(
          'Wall clock',
          measured['latency'],
          (
              ('batch', 'batch_size'),
              *_decoding(measured['latency']),
              ('tokens/s', 'tokens_per_second', 0),
              ('measured speed-up', 'measured_speedup', 2),
              ('predicted speed-up', 'predicted_speedup', 2),
              ('… with verification', 'predicted_speedup_with_verify', 2),
              ('… by position', 'predicted_speedup_by_place', 2),
              ('planned', _planned),
              ('tokens per target call', 'block_efficiency', 2),
              ('c', 'cost_ratio', 2),
              ('v', 'verify_ratio', 2),
              ('compilation, s', 'compile_s', 1),
              *_sizes('tokens_per_second', 'runs'),
          ),
      ),
      _breakdown(measured['latency']),
      _table(
          'Task quality',
          measured['task_quality'],
          (
              ('model', _model),
              *_decoding(measured['task_quality'])[1:],
              *_qualities(measured['task_quality']),
          ),
      ),
      made(study.training),
      _table('Plans for TPU slices', measured['plan'], _PLAN),
      _certificates(study.lines),
  )
  return [table for table in drawn if table.body]


def made(training: Sequence[measurements.Line]) -> Table:
  """How each model was trained."""
  body = []
  for run in runs_lib.runs(training):
    get, size = run.settings.get, run.sizes.get('parameters')
    start = get('start.checkpoint') or get('start.model') or ''
    seconds, wall_s = runs_lib.mean(run.seconds), runs_lib.mean(run.wall_s)
    body.append(
        [
            run.name,
            run.divergence,
            run.text,
            '' if size is None else runs_lib.number(size),
            measurements.short_name(str(start)),
            f'{max(run.steps.values(), default=0):.0f}',
            get('steps.batch_size', ''),
            get('optimizer.name', ''),
            get('optimizer.learning_rate', ''),
            '' if seconds is None else f'{seconds:.0f}',
            '' if not wall_s else f'{wall_s:.0f}',
            len(run.wall_s),
        ]
    )
  header = [
      'run', 'divergence', 'text', 'parameters', 'starts from', 'steps',
      'batch', 'optimizer', 'learning rate', 'training, s', 'in all, s',
      'seeds',
  ]  # fmt: skip
  body = [[str(cell) or _NONE for cell in row] for row in body]
  filled = [
      i for i in range(len(header)) if any(row[i] != _NONE for row in body)
  ]
  return Table(
      'How the models were made',
      [header[i] for i in filled],
      [[row[i] for i in filled] for row in body],
  )


def _breakdown(measured):
  """Where the time of a block goes, for settings that were profiled."""
  header = ['setting', 'part of a block', 'ms', 'share of the block']
  body = []
  for one in measured:
    if block := one.value('block_ms'):
      for name, value in one.metrics.items():
        if name.endswith('_ms') and name.startswith(('block_', 'prefill_')):
          part = name.removesuffix('_ms').removeprefix('block_')
          share = f'{100 * value.value / block.value:.0f} %'
          body.append(
              [_setting(one), part.replace('_', ' '), value.text(), share]
          )
  return Table('Time per block', header, body)


def _certificates(lines):
  """The verdicts of the exactness checks."""
  header = ['run', 'draft', 'check', 'value', 'unit']
  body = [
      [
          line['run'],
          line['draft'] or _NONE,
          name,
          f'{one["value"]:.6g}',
          one['unit'],
      ]
      for line in lines
      if line['kind'] == 'certificate'
      for name, one in line['metrics'].items()
  ]
  return Table('Certificates', header, body)


def _table(title, measured, columns):
  """A table without its empty columns."""
  filled = []
  for name, *what in columns:
    cells = [_cell(one, *what) for one in measured]
    if set(cells) != {_NONE}:
      filled.append((name, cells))
  body = list(map(list, zip(*(cells for _, cells in filled))))
  return Table(title, [name for name, _ in filled], body)


def _cell(one, what, digits=None, scale=1):
  """The text of a function, of a setting, or with digits of a metric."""
  if callable(what):
    return what(one)
  if digits is None:
    value = one.decoding.get(what)
    return _NONE if value is None else str(value)
  value = one.metrics.get(what)
  if value is None:
    return _NONE
  error = None if value.error is None else scale * value.error
  return value._replace(value=scale * value.value, error=error).text(digits)


def _in_order(measured):
  """Measurements to compare with each other stand next to each other."""
  names = [None, *measurements.draft_names(measured)]

  def key(one):
    # The batch size matters to times alone.
    is_timed = 'tokens_per_second' in one.metrics
    settings = ['batch_size'] * is_timed + ['temperature', 'block_length']
    return *(one.decoding.get(x) or 0 for x in settings), names.index(one.draft)

  return sorted(measured, key=key)


def _decoding(measured: Sequence[measurements.Measurement]) -> list[tuple]:
  """Columns of the draft and the decoding; rare settings where they matter."""
  columns = [
      ('draft', lambda one: one.draft or 'autoregressive'),
      ('sampling', _sampling),
      ('block length', 'block_length'),
  ]
  for name in (*measurements.DEFAULTS, 'max_new_tokens'):
    values = {one.decoding.get(name) for one in measured if one.draft} - {None}
    # Without a default, a setting matters if it varies.
    if values - {measurements.DEFAULTS.get(name, min(values, default=None))}:
      columns.append((name.replace('_', ' '), name))
  return columns


def _qualities(measured):
  """Columns of the task's metrics, and of how often they were measured."""
  names = measurements.qualities(measured)
  columns = [(name.replace('_', ' '), name, 3) for name in names]
  return columns + [c for name in names[:1] for c in _sizes(name, 'examples')]


def _sizes(metric, unit):
  """Columns of the number of seeds, and of what was counted in each."""

  def of(entry):
    return lambda one: str(getattr(one.metrics.get(metric), entry, _NONE))

  return [('seeds', of('seeds')), (unit, of('count'))]


def _sampling(one):
  temperature = one.decoding.get('temperature')
  if temperature is None:
    return _NONE
  return measurements.sampling_name(temperature)


def _setting(one):
  return f'{one.draft} draft, {measurements.describe(one.decoding)}'


def _model(one):
  model = one.decoding.get('model') or one.draft or 'target'
  return f'target with {one.draft} draft' if model == 'pair' else model


def _planned(one):
  length = one.metrics.get('planned_block_length')
  speedup = one.metrics.get('planned_speedup')
  if length is None or speedup is None:
    return _NONE
  # A mean over seeds, whose plans may differ.
  return f'{length.value:g}: {speedup.value:.2f}' if length.value else 'none'


def _speedups(one):
  prefix = 'speedup_at_'
  return ', '.join(
      f'{name.removeprefix(prefix)}: {value.value:.2f}'
      for name, value in one.metrics.items()
      if name.startswith(prefix)
  ) or _NONE  # fmt: skip


_PLAN = (
    ('draft', lambda one: one.draft or _NONE),
    ('slice', 'topology'),
    ('mesh', 'mesh'),
    ('batch', 'batch_size'),
    ('micro-batches', 'micro_batches'),
    ('remat', 'remat'),
    ('memory, GiB', 'step_memory_bytes', 2, 2**-30),
    ('memory, %', 'memory_share', 0, 100),
    ('step, s', 'step_s', 3),
    ('rollouts, s', 'rollout_s', 3),
    ('MFU, %', 'mfu', 0, 100),
    ('target step, ms', 'token_s', 2, 1e3),
    ('draft step, ms', 'draft_step_s', 2, 1e3),
    ('block, ms', 'block_s', 2, 1e3),
    ('speed-up', _speedups),
)

_MEANINGS = {
    'rank': 'by the mean over the seeds that most rows have; a row that lacks'
    ' some of them has no rank, as its mean is of other seeds.',
    'change': 'against the row’s control, on the seeds that both have, paired'
    ' by seed and, where single examples were recorded, by example.',
    '95 % interval': 'of the change, Student’s t.',
    'clear': 'whether the interval excludes 0, which happens by chance in one'
    ' comparison in twenty.',
    'training': 'time of training steps, mean over seeds.',
    'expected acceptance': 'the probability that a drafted token is accepted: 1'
    ' minus the total variation distance between target and draft, averaged'
    ' over tokens that follow the target’s distribution. Of a parallel draft,'
    ' that of the first token of a block.',
    'tokens per target call': 'block efficiency, measured: emitted tokens per'
    ' call of the target, including its correction or bonus token; between 1'
    ' and block length + 1. The last block of a text is cut where the text'
    ' ends (EOS or the limit); these blocks are included, which biases the'
    ' number downwards, the more so the shorter the texts.',
    'uncut': 'block efficiency of a text without an end, from the acceptance'
    ' rate at each position: 1 + a₁ + a₁a₂ + ….',
    'predicted': 'block efficiency of texts of the measured lengths, with their'
    ' cut last blocks, if tokens were accepted independently with the expected'
    ' acceptance. They are not, so the measured number may differ.',
    'gain': 'block efficiency minus that of the first verifier on the same'
    ' inputs; the error is that of the paired difference.',
    'verifier': 'decides which drafted tokens are kept. “token” and “block”'
    ' are lossless; all others change the output distribution.',
    'paths': 'drafts proposed side by side for each target call.',
    'adaptive': 'the rule that ends a draft before its full length.',
    'parallel': 'one call of the draft proposes a whole block, each token'
    ' without having seen those before it in the block.',
    'measured speed-up': 'tokens per second relative to autoregressive decoding'
    ' of the same inputs, without compilation: the median of paired runs. Below'
    ' 1, speculative decoding is slower.',
    'predicted speed-up': 'block efficiency / (c γ + 1): the speed-up if'
    ' verifying a block took as long as one target step; γ is the block'
    ' length. Block efficiency is the measured one, with cut last blocks, as'
    ' plain decoding takes one step for each token that is emitted.',
    '… with verification': 'block efficiency / (c γ + v).',
    '… by position': 'the planner’s prediction, from the acceptance rate'
    ' (accepted of judged tokens) at each position of a block (in a run with'
    ' the longest drafts), the lengths of the outputs, the slowest'
    ' sequence of a batch, and the measured costs of single steps and of the'
    ' encoders.',
    'planned': 'the block length that the planner chooses for this draft, batch'
    ' and decoding, and the speed-up it predicts; none: do not speculate.',
    'c': 'time of a draft step relative to a target step; of a parallel draft,'
    ' which takes one step for a block (γ = 1 in the formulas), that of this'
    ' step.',
    'v': 'time of a target call on a whole block relative to a single token.',
    'compilation, s': 'not part of any speed; near 0 if it was cached.',
    'part of a block': 'timed one by one; block: one iteration of the decoding'
    ' loop; prefill: encoding the inputs, once per output.',
    'model': 'a model alone, decoding autoregressively, or the target with a'
    ' draft, decoding speculatively. A lossless verifier leaves the target’s'
    ' output distribution unchanged, whatever the draft.',
    'text': 'whose text the run learned from: the dataset’s, or what the draft'
    ' or the target sampled, and at which temperature.',
    'parameters': 'of the model that was trained.',
    'training, s': 'time of the steps on this machine, mean over seeds.',
    'in all, s': 'with loading, compilation and validation.',
    'mesh': 'chips along the axes data × fsdp × tensor.',
    'memory, GiB': 'peak per chip in a training step, as the TPU compiler lays'
    ' it out. Nothing was run.',
    'memory, %': 'peak over the training step and the samplers, of a chip’s'
    ' memory.',
    'step, s': 'predicted: the compiler’s estimates for all instructions, plus'
    ' the communication between chips that the step waits for.',
    'rollouts, s': 'the part of the step that samples training sequences.',
    'MFU, %': 'model FLOPs (target forward, draft forward and backward) over'
    ' the chip’s peak, in the step without rollouts.',
    'target step, ms': 'a step of autoregressive decoding of the batch.',
    'draft step, ms': 'the same for the draft.',
    'block, ms': 'a block of speculative decoding: drafting and the target’s'
    ' call.',
    'speed-up': 'of speculative over autoregressive decoding, predicted at the'
    ' acceptance before the colon, without cut blocks.',
    'unit': '1 marks a number without a unit.',
    '±': 'one standard error: over examples, and over seeds if there are'
    ' several; of a time, over repeated measurements.',
}
