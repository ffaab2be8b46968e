"""Measured numbers, from a run to the documentation.

  python benchmarks/publish.py store quickstart --run=runs/quickstart
      --command='make quickstart' --seconds=215
  python benchmarks/publish.py render

`store` copies the lines of a run's results into benchmarks/results/NAME.json;
of a study it keeps means, errors and changes of rows, and pictures in
docs/pictures, which the block 'study_NAME' shows.
`render` writes what those files say into every block of README, docs and gin
files that is marked '<!-- measured: NAME -->' ... '<!-- end -->', or, in a gin
file, '# measured: NAME' ... '# end'. A test fails where a block differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import json
import os
import pathlib
import platform
import re
from typing import Any

import plan_anchors
import plan_xl

from distillspec_jax.core import results
from distillspec_jax.reporting import drawing
from distillspec_jax.reporting import headlines
from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import rows as rows_lib
from distillspec_jax.reporting import study_summary

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
PICTURES = ROOT / 'docs' / 'pictures'
_KINDS = ('acceptance', 'task_quality', 'latency')
_LENGTH = 5  # the block length that is shown
_EXPERIMENTS = {
    'quickstart': 'Quickstart (Python source code)',
    'english_german': 'English-German (Multi30k)',
    'gsm8k': 'GSM8K',
}
_BLOCK = re.compile(
    r'(?P<start>^(?P<mark><!--|#) measured: (?P<name>\w+)(?: -->)?\n)'
    r'(?P<body>.*?)(?P<end>^(?:<!--|#) end(?: -->)?$)',
    re.MULTILINE | re.DOTALL,
)


def store(name: str, run: str, command: str, seconds: float) -> None:
  """Writes benchmarks/results/NAME.json from the results under `run`.

  Folders are written as they lie in this one, not with this machine's paths.
  """
  study = rows_lib.read(pathlib.Path(run))
  if study is not None:
    _store_study(name, study, command, seconds)
    return
  here = pathlib.Path.cwd()
  lines = [
      json.loads(json.dumps(line).replace(f'"{here}/', '"'))
      for path in sorted(pathlib.Path(run).rglob(results.FILE))
      for line in results.read(path)
      if line['kind'] in _KINDS
  ]
  if not lines:
    raise SystemExit(f'There are no measurements under {run}.')
  RESULTS.mkdir(exist_ok=True)
  content = {
      'command': command,
      'seconds': round(seconds),
      'machine': f'{os.cpu_count()} CPU cores, Python'
      f' {platform.python_version()}, jax {lines[0]["provenance"]["jax"]}',
      'lines': lines,
  }
  rows = ',\n'.join(map(json.dumps, content.pop('lines')))
  head = json.dumps(content, indent=0).removesuffix('\n}')
  (RESULTS / f'{name}.json').write_text(f'{head},\n"lines": [\n{rows}\n]}}\n')


def _store_study(
    name: str, study: rows_lib.Comparison, command: str, seconds: float
) -> None:
  """Writes the numbers of a study, and its pictures in place of older ones."""
  lines = study.lines
  if not lines:
    raise SystemExit(f'There are no results of {study.title}.')
  newest = max(line['provenance']['time_utc'] for line in lines)
  first = lines[0]['provenance']
  for old in PICTURES.glob(f'{name}-*.svg'):
    old.unlink()
  pictures = []
  for section in study_summary.pictures(study):
    for panel in section.panels:
      PICTURES.mkdir(parents=True, exist_ok=True)
      file = f'{name}-{panel.name}.svg'
      (PICTURES / file).write_text(drawing.standalone(panel))
      pictures.append([file, panel.title])
  content = {
      'command': command,
      'seconds': round(seconds),
      'machine': f'{os.cpu_count()} CPU cores, Python'
      f' {platform.python_version()}, jax {first["jax"]}',
      'provenance': {'git': first['git'], 'time_utc': newest},
      'pictures': pictures,
      **study_summary.summary(study),
  }
  RESULTS.mkdir(exist_ok=True)
  text = json.dumps(content, indent=1)
  (RESULTS / f'{name}.json').write_text(f'{text}\n')


def documents() -> Iterator[pathlib.Path]:
  """The files that may have blocks."""
  yield ROOT / 'README.md'
  yield from sorted((ROOT / 'docs').rglob('*.md'))
  yield from sorted((ROOT / 'gin_configs').rglob('*.gin'))


def rendered(text: str) -> str:
  """The text of a file with its blocks as the results say."""

  def fill(match: re.Match[str]) -> str:
    body = view(match['name'])()
    if match['mark'] == '#':
      body = ''.join(f'# {line}\n' for line in body.splitlines())
    return match['start'] + body + match['end']

  return _BLOCK.sub(fill, text)


def view(name: str) -> Callable[[], str]:
  """What renders a block.

  Raises:
    KeyError: there is no such block.
  """
  if name.startswith('study_'):
    return lambda: _ranked_study(name.removeprefix('study_'))
  return _VIEWS[name]


def _ranked_study(name: str) -> str:
  """The answers, rankings and pictures of a study."""
  content = _load(name)
  if content is None:
    return 'Not measured by the present code.\n'
  parts = [
      f'**{what}** {number} ({badge}). {detail}'
      for what, number, badge, detail in content['answers']
  ]
  parts += content['remarks']
  for ranking in content['rankings']:
    table = study_summary.ranked(ranking)
    controls = {row['control'] for row in ranking['rows']} - {None}
    against = (
        f', changes against {controls.pop()}' if len(controls) == 1 else ''
    )
    parts.append(f'{table.title}{against}:')
    parts.append(_table(table.header, table.body).rstrip('\n'))
  for row, seed, text in content['failed']:
    parts.append(f'Failed: {row}, seed {seed}: {text}')
  parts += [
      f'![{title}](pictures/{file})' for file, title in content['pictures']
  ]
  parts.append(f'{_minutes(content)}, {content["machine"]}.')
  return '\n\n'.join(parts) + '\n'


def _load(name: str) -> dict[str, Any] | None:
  path = RESULTS / f'{name}.json'
  return json.loads(path.read_text()) if path.exists() else None


def _study(name: str) -> measurements.Study:
  (study,) = measurements.studies(_load(name)['lines'])
  return study


def _of(
    study: measurements.Study, draft: str, temperature: float
) -> measurements.Measurement | None:
  """The acceptance of a draft with token verification, block length 5."""
  chosen = measurements.select(
      study.measurements('acceptance'),
      temperature=temperature,
      block_length=_LENGTH,
      verifier='token',
      paths=1,
      adaptive=None,
  )
  return next((one for one in chosen if one.draft == draft), None)


def _cell(study, draft: str, temperature: float) -> str:
  """Block efficiency, and its gain over what it is compared with."""
  one = _of(study, draft, temperature)
  if one is None:
    return '–'
  text = one.metrics['block_efficiency'].text(2)
  name = _baseline(study, draft)
  before = name and _of(study, name, temperature)
  change = headlines.gain(before, one, 'block_efficiency')
  return text if change is None else f'{text} ({change.text()})'


def _baseline(study, draft: str) -> str | None:
  """What a draft is compared with: the distilled one with the control."""
  drafts = {one.draft for one in study.measurements('acceptance')}
  name = headlines.baseline(drafts, control=draft == headlines.AFTER)
  return name if name != draft else None


def _table(header: list[str], rows: list[list[str]]) -> str:
  lines = [header, ['---'] * len(header), *rows]
  return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def _quickstart() -> str:
  """Speed-up and tokens per target call of the three drafts."""
  study = _study('quickstart')
  temperatures = (0.0, 1.0)
  rows = [
      [
          draft,
          *[
              _speedup(study, draft, temperature)
              for temperature in temperatures
          ],
          *[_cell(study, draft, temperature) for temperature in temperatures],
      ]
      for draft in (headlines.BEFORE, headlines.CONTROL, headlines.AFTER)
  ]
  header = [
      'draft', 'times as fast as plain decoding, greedy', 'at temperature 1',
      'tokens per target call, greedy', 'at temperature 1',
  ]  # fmt: skip
  return _table(header, rows) + (
      f'\nBlock length {_LENGTH}; speed on this machine, one sequence at a'
      ' time, beside plain decoding with the same target, median of pairs of'
      f' runs; tokens per target call on {_examples(study)} held-out inputs;'
      ' one seed.'
      f' In brackets: what the control, {headlines.CONTROL}, gains over the'
      ' fine-tuned draft by as many more steps, and what the distilled draft'
      ' gains over the control.\n'
  )


def _speedup(study, draft: str, temperature: float) -> str:
  """How many times as fast as plain decoding, one sequence at a time."""
  chosen = measurements.select(
      study.measurements('latency'),
      temperature=temperature,
      block_length=_LENGTH,
      batch_size=1,
  )
  for one in chosen:
    if one.draft == draft:
      return one.metrics['measured_speedup'].text(2)
  return '–'


def _examples(study: measurements.Study) -> int:
  (one,) = {
      line['metrics']['block_efficiency']['count']
      for line in study.lines
      if line['kind'] == 'acceptance'
  }
  return one


def _experiments() -> str:
  """Distilled against its control, one row for each experiment."""
  rows = []
  for name, title in _EXPERIMENTS.items():
    content = _load(name)
    if content is None:
      continue
    study = _study(name)
    seeds = {line['provenance']['seed'] for line in study.lines}
    start = _baseline(study, headlines.AFTER)
    shown = [name for name in (start, headlines.AFTER) if name]
    cells = [
        ' → '.join(_cell(study, name, t) for name in shown) for t in (0.0, 1.0)
    ]
    rows.append([title, str(len(seeds)), _minutes(content), *cells])
  header = [
      'experiment', 'seeds', 'time', 'tokens per target call, greedy',
      'temperature 1',
  ]  # fmt: skip
  return _table(header, rows) + (
      f'\nControl ({headlines.CONTROL}, with its gain over the fine-tuned'
      ' draft) → distilled draft (with its gain over the control); block length'
      f' {_LENGTH}, held-out inputs, {_load("quickstart")["machine"]}.\n'
  )


def _minutes(content: dict[str, Any]) -> str:
  if content['seconds'] is None:
    return 'not timed'
  minutes, seconds = divmod(content['seconds'], 60)
  return f'{minutes} min {seconds} s'


def _commands() -> str:
  """The command, time and machine of each results file."""
  rows = []
  for path in sorted(RESULTS.glob('*.json')):
    content = json.loads(path.read_text())
    provenance = content.get('provenance') or content['lines'][-1]['provenance']
    rows.append(
        [
            path.stem,
            f'`{content["command"]}`',
            _minutes(content),
            content['machine'],
            provenance['time_utc'][:10],
        ]
    )
  return _table(['results', 'command', 'time', 'machine', 'date'], rows)


def _decoding(name: str, library: str) -> Callable[[], str]:
  """Greedy decoding beside a library, one row for each size and batch."""

  def text() -> str:
    content = _load(name)
    if content is None:
      return 'Not measured by the present code.\n'
    rows = []
    for line in content['lines']:
      metrics = {name: one['value'] for name, one in line['metrics'].items()}
      ratio, lowest, highest = (
          metrics[f'ratio_to_{library}{end}']
          for end in ('', '_lowest', '_highest')
      )
      rows.append(
          [
              line['target'],
              str(line['decoding']['batch_size']),
              f'{metrics["tokens_per_second"]:.0f}',
              f'{metrics[f"{library}_tokens_per_second"]:.0f}',
              f'{ratio:.2f} ({lowest:.2f} to {highest:.2f})',
          ]
      )
    header = ['size', 'batch', 'tokens/s', library, 'ratio (range)']
    return _table(header, rows) + (
        '\nAutoregressive, float32 unless stated, random weights, inputs of 64'
        f' tokens; {content["machine"]}. Calls take turns; the ratio is the'
        ' median of neighbouring calls.\n'
    )

  return text


def _training_temperature() -> str:
  """Distilled drafts by the temperature of their training text."""
  if _load('training_temperature') is None:
    return 'Not measured by the present code.\n'
  study = _study('training_temperature')
  names = sorted({one.draft for one in study.measurements('acceptance')})
  seeds = {line['provenance']['seed'] for line in study.lines}
  rows, texts = [], []
  for name in names:
    cells = [
        _of(study, name, t).metrics['block_efficiency'] for t in (0.0, 1.0)
    ]
    rows.append([name.removeprefix('T = '), *(cell.text(2) for cell in cells)])
  for title, temperature in (('greedy', 0.0), ('at temperature 1', 1.0)):
    first, last = (_of(study, name, temperature) for name in names)
    gain = headlines.gain(last, first, 'block_efficiency')
    texts.append(f'{title} {gain.text()} ({gain.interval_text()})')
  header = [
      'text sampled at',
      'tokens per target call, greedy',
      'temperature 1',
  ]
  return _table(header, rows) + (
      f'\nForward KL, seeds: {len(seeds)}, {_examples(study)} inputs, block'
      f' length {_LENGTH}. {names[0].removeprefix("T = ")} against'
      f' {names[1].removeprefix("T = ")}: {", ".join(texts)}. Measured with the'
      ' pair that the quickstart trained before, a micro target and a nano'
      ' draft.\n'
  )


def _plan_anchors() -> str:
  """The plan beside published speed-ups."""
  content = _load('plan_anchors')
  if content is None:
    return 'Not planned by the present code.\n'
  rows = []
  for row in plan_anchors.compared(content):
    limit = '–' if row.limit is None else f'{row.limit:.2f}'
    difference = f'{100 * row.difference:+.0f} %'
    if row.is_missed:
      difference += ', missed'
    rows.append(
        [
            row.what, row.draft, f'{row.measured:.1f}', limit,
            f'{row.planned:.2f}', difference,
        ]
    )  # fmt: skip
  header = [
      'what', 'draft', 'published', 'block efficiency', 'planned', 'difference'
  ]  # fmt: skip
  absent = plan_anchors.absent(content)
  codes = {line['provenance']['git'] for line in content['lines']}
  note = f'\nCompiled from the code of commit {", ".join(sorted(codes))}.'
  note += f' Not compiled: {"; ".join(absent)}.\n' if absent else '\n'
  return _table(header, rows) + note


def _plan_xl() -> str:
  """What a plan says of XL and a small draft on a v5e chip."""
  content = _load('plan_xl')
  if content is None:
    return 'Not planned by the present code.\n'
  numbers, step = plan_xl.samplers(content), plan_xl.step(content)
  rows = []
  for name, label in (
      ('token', 'a token of the target'),
      ('draft_step', 'a token of the draft'),
      ('block', 'a block, 7 drafted tokens and their verification'),
  ):
    if f'{name}_s' in numbers:
      time, floor = numbers[f'{name}_s'], numbers[f'{name}_memory_floor']
      rows.append([label, f'{1e3 * time:.2f} ms', f'{100 * floor:.0f} %'])
  for name, label in (
      ('cost_ratio', 'c'),
      ('verify_ratio', 'v'),
      (f'speedup_at_{plan_xl.ACCEPTANCE:g}', 'speed-up at acceptance 0.75'),
  ):
    if name in numbers:
      rows.append([label, f'{numbers[name]:.2f}', ''])
  for name, label in (
      ('step_s', 'a training step'),
      ('rollout_s', 'of which rollouts'),
  ):
    if name in step:
      rows.append([label, f'{1e3 * step[name]:.0f} ms', ''])
  for name, label in (
      ('mfu', 'model FLOP utilisation without rollouts'),
      ('mfu_with_rollouts', 'with rollouts'),
  ):
    if name in step:
      rows.append([label, f'{100 * step[name]:.0f} %', ''])
  codes = {line['provenance']['git'] for line in content['lines']}
  absent = '' if step else ' The training step was not compiled.'
  return _table(['', 'predicted', 'its memory floor'], rows) + (
      '\nEight rows on a chip, inputs of 512 tokens, outputs of 128, bfloat16,'
      f' layers unrolled. Compiled from the code of commit'
      f' {", ".join(sorted(codes))}.{absent}\n'
  )


def _parallel_drafts() -> str:
  """A parallel draft beside a sequential one of the same size and time."""
  content = _load('parallel_drafts')
  if content is None:
    return 'Not measured by the present code.\n'
  study = _study('parallel_drafts')
  seeds = {line['provenance']['seed'] for line in study.lines}
  rows, texts = [], []
  for name in ('sequential', 'parallel', 'token by token'):
    cells = [
        _of(study, name, t).metrics['block_efficiency'] for t in (0.0, 1.0)
    ]
    rows.append([name, *(cell.text(2) for cell in cells)])
  rows[1][0] = 'parallel draft, in one call'
  rows[2][0] = 'parallel draft, token by token'
  rows[0][0] = 'sequential draft'
  for title, temperature in (('greedy', 0.0), ('at temperature 1', 1.0)):
    sequential, parallel = (
        _of(study, name, temperature) for name in ('sequential', 'parallel')
    )
    gain = headlines.gain(sequential, parallel, 'block_efficiency')
    texts.append(f'{title} {gain.text()} ({gain.interval_text()})')
  header = ['', 'tokens per target call, greedy', 'temperature 1']
  return _table(header, rows) + (
      f'\nForward KL, seeds: {len(seeds)}, {_examples(study)} inputs, block'
      f' length {_LENGTH}, equal training time. In one call against sequential:'
      f' {", ".join(texts)}. {_minutes(content)}, {content["machine"]}.\n'
  )


def _header(name: str) -> Callable[[], str]:
  """The record in the header of an experiment's gin file."""

  def text() -> str:
    content = _load(name)
    if content is None:
      return 'Not measured by the present code.\n'
    study = _study(name)
    lines = [f'{content["machine"]}: {_minutes(content)}.']
    lines += [
        f'{draft}: greedy {_cell(study, draft, 0.0)}, temperature 1'
        f' {_cell(study, draft, 1.0)}'
        for draft in (headlines.BEFORE, headlines.CONTROL, headlines.AFTER)
        if _of(study, draft, 0.0)
    ]
    baseline = _baseline(study, headlines.AFTER)
    lines.append(f'In brackets: the gain of distilled over {baseline}.')
    if baseline == headlines.CONTROL:
      lines[-1] = (
          f'In brackets: the gain of {baseline} over {headlines.BEFORE}, and of'
          f' {headlines.AFTER} over {baseline}.'
      )
    return '\n'.join(lines) + '\n'

  return text


_VIEWS: dict[str, Callable[[], str]] = {
    'quickstart': _quickstart,
    'experiments': _experiments,
    'commands': _commands,
    'decoding': _decoding('decoding', 'transformers'),
    'ctranslate2': _decoding('ctranslate2', 'ctranslate2'),
    'training_temperature': _training_temperature,
    'plan_anchors': _plan_anchors,
    'plan_xl': _plan_xl,
    'parallel_drafts': _parallel_drafts,
    **{f'header_{name}': _header(name) for name in _EXPERIMENTS},
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  commands = parser.add_subparsers(dest='action', required=True)
  stored = commands.add_parser('store', help='a run -> a results file')
  stored.add_argument('name')
  stored.add_argument('--run', required=True)
  stored.add_argument('--command', required=True)
  stored.add_argument('--seconds', required=True, type=float)
  commands.add_parser('render', help='results files -> the documentation')
  options = parser.parse_args()
  if options.action == 'store':
    store(options.name, options.run, options.command, options.seconds)
    return
  for path in documents():
    text = path.read_text()
    new = rendered(text)
    if new != text:
      path.write_text(new)
      print(path.relative_to(ROOT))


if __name__ == '__main__':
  main()
