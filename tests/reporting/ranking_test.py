"""The page of a study says what its results say."""

import json
import re

import numpy as np
import pytest
from scipy import stats

from distillspec_jax.core import errors
from distillspec_jax.core import example_records
from distillspec_jax.core import study_file
from distillspec_jax.reporting import drawing
from distillspec_jax.reporting import ranking
from distillspec_jax.reporting import report
from distillspec_jax.reporting import rows
from distillspec_jax.reporting import study_cards
from distillspec_jax.reporting import study_figures
from distillspec_jax.reporting import study_tables
from tests.reporting import made_up_studies as made_up


def small(folder, efficiencies, *, axes=(), examples=6, **more):
  """A study whose rows have these emitted tokens per block, for each seed.

  Args:
    folder: of the study.
    efficiencies: (name, labels) -> seed -> [examples] emitted in ten blocks.
    axes: of the labels.
    examples: how many.
    **more: of each row.
  """
  entries = []
  for (name, labels), by_seed in efficiencies.items():
    for seed, emitted in by_seed.items():
      one = made_up.row(name, dict(labels), seed, **more)
      one['results'] = [f'{one["folder"]}_{"_".join(dict(labels).values())}']
      if name != 'control':
        one['control'] = 'control'
      entries.append(one)
      line = made_up.acceptance(
          np.array(emitted, float), np.full(examples, 10.0), draft=name,
          settings=made_up.decoding(0.0), seed=seed,
      )  # fmt: skip
      made_up.write(folder / one['results'][0], [line])
  return made_up.finish(folder, 'grid', list(axes), entries)


CONTROL = {
    0: [20, 22, 24, 18, 21, 15],
    1: [21, 23, 24, 19, 21, 16],
    2: [19, 21, 23, 18, 20, 15],
}
BETTER = {
    0: [26, 22, 29, 25, 23, 18],
    1: [27, 23, 29, 27, 23, 19],
    2: [25, 21, 28, 25, 22, 18],
}


@pytest.fixture
def pair(tmp_path):
  return small(tmp_path, {('control', ()): CONTROL, ('better', ()): BETTER})


def table_of(study):
  (one,) = ranking.rankings(study)
  return study_tables.ranked(study, one)


def test_a_ranking_by_hand(pair):
  study = rows.read(pair)
  (one,) = ranking.rankings(study)
  best, control = one.entries
  assert (best.row.name, best.rank) == ('better', 1)
  assert (control.row.name, control.rank) == ('control', 2)
  # Every example has ten blocks: block efficiency is the mean of tokens / 10.
  assert one.value(best).value == pytest.approx(430 / 180)
  assert one.value(control).value == pytest.approx(360 / 180)
  # The change is paired by seed and example: its interval is that of the
  # ratio's linearised contributions, two crossed random effects.
  old, new = (np.array(list(x.values())) / 10 for x in (CONTROL, BETTER))
  ratios = new.mean(1) / old.mean(1)
  each = ratios[:, None] + (new - ratios[:, None] * old) / old.mean(1)[:, None]
  total = each.mean()
  by_seed, by_example = each.mean(1), each.mean(0)
  rest = each - by_seed[:, None] - by_example + total
  terms = [
      (by_seed.var(ddof=1) / 3, 2),
      (by_example.var(ddof=1) / 6, 5),
      (-np.sum(rest**2) / 10 / 18, 10),
  ]
  variance = sum(term for term, _ in terms)
  degrees = variance**2 / sum(term**2 / d for term, d in terms)
  assert degrees > 2
  margin = stats.t.ppf(0.975, degrees) * np.sqrt(variance)
  change = best.change
  assert change.value == pytest.approx(100 * (total - 1))
  assert change.error == pytest.approx(100 * np.sqrt(variance))
  assert change.interval == pytest.approx(
      (100 * (total - 1 - margin), 100 * (total - 1 + margin))
  )
  assert control.change is None


def test_the_ranking_is_on_the_page(pair):
  page = report.report(run=str(pair)).read_text(encoding='utf-8')
  (one,) = ranking.rankings(rows.read(pair))
  change = one.entries[0].change
  for text in (
      'Made-up grid', 'distillspec study --run=', change.text(), change.ends,
      '2.389', '2.000', 'changes against control', 'Which recipe wins?',
      'Each seed has its own target', '51 s',
  ):  # fmt: skip
    assert text in page, text
  markdown = (pair / 'report.md').read_text(encoding='utf-8')
  assert '| 1 | better | 2.389' in markdown


def test_the_page_tells_how_rows_and_targets_were_made(tmp_path):
  page = report.report(run=str(made_up.grid(tmp_path, seeds=(0, 1))))
  text = page.read_text(encoding='utf-8')
  table = text[text.index('Table: How the models were made') :]
  cells = re.findall(r'data-label="([^"]+)">([^<]*)<', table)
  for name, how in (
      ('target', 'cross-entropy'), ('JSD, draft', 'JSD'),
      ('forward KL, mixed', 'forward KL'),
  ):  # fmt: skip
    start = cells.index(('run', name))
    row = dict(cells[start : start + 11])
    assert row['divergence'] == how and row['learning rate'] == '0.002'
    assert (row['steps'], row['parameters']) == ('40', '1.2 M')
  assert dict(cells[start : start + 11])['text'] == (
      '50% dataset; 50% draft, T = 1'
  )


def test_the_page_of_an_experiment_begins_as_that_of_any_run(pair):
  study = json.loads((pair / study_file.FILE).read_text())
  (pair / study_file.FILE).write_text(
      json.dumps({**study, 'kind': 'experiment'})
  )
  text = report.report(run=str(pair)).read_text(encoding='utf-8')
  first, second = re.findall('<h2>(.*?)</h2>', text)
  assert first == 'made up, test, target of runs'
  assert second == 'Made-up grid: experiment of 2 rows'
  assert text.count('Ranking: greedy') == 2  # a heading and its table


def test_rows_that_lack_seeds_are_not_ranked(tmp_path):
  lucky = {0: [60] * 6}  # the best by far, with one seed
  study = rows.read(
      small(
          tmp_path,
          {
              ('control', ()): CONTROL,
              ('better', ()): BETTER,
              ('lucky', ()): lucky,
          },
      )
  )
  (one,) = ranking.rankings(study)
  assert [entry.row.name for entry in one.ranked] == ['better', 'control']
  last = one.entries[-1]
  assert (last.row.name, last.missing) == ('lucky', (1, 2))
  # Against the control's seed 0 alone, not against its mean.
  assert last.change.value == pytest.approx(100 * (60 / 20 - 1))
  cells = table_of(study).body[-1]
  assert cells[0] == '–' and '1 (0; lacks 1, 2)' in cells
  assert 'lucky (lacks seed 1, 2)' in ' '.join(
      study_cards.sentences(study, [one])
  )
  assert study_cards.cards(study, [one])[0].number == 'better'


def test_changes_need_a_seed_in_common(tmp_path):
  study = rows.read(
      small(
          tmp_path,
          {('control', ()): {0: [20] * 6}, ('other', ()): {1: [30] * 6}},
      )
  )
  (one,) = ranking.rankings(study)
  assert all(entry.change is None for entry in one.entries)


def test_what_failed_is_listed_with_its_line(tmp_path):
  folder = small(tmp_path, {('control', ()): CONTROL, ('better', ()): BETTER})
  study = json.loads((folder / study_file.FILE).read_text())
  broken = made_up.row('broken', {}, 1, results=[], failed='the loss is nan')
  study['rows'].append(broken)
  (folder / study_file.FILE).write_text(json.dumps(study))
  study = rows.read(folder)
  found = ranking.rankings(study)
  (failed,) = [
      table
      for table in study_tables.leading(study, found)
      if table.title == 'Failed'
  ]
  assert failed.body == [['broken', '1', 'the loss is nan']]
  assert 'broken' in ' '.join(study_cards.sentences(study, found))


def test_the_control_is_that_with_the_rows_labels(tmp_path):
  steps = {n: {('steps', n)} for n in ('10', '20')}
  study = rows.read(
      small(
          tmp_path,
          {
              (name, tuple(steps[n])): values
              for n in steps
              for name, values in (('control', CONTROL), ('better', BETTER))
          },
          axes=['steps'],
      )
  )
  names = {row.name: study.control(row) for row in study.rows}
  assert names['better, 20'].labels == {'steps': '20'}
  assert names['better, 10'].labels == {'steps': '10'}
  assert names['control, 10'] is None


def test_seeds_with_one_target_count_once(tmp_path):
  """Two drafts of one of two targets are no two independent seeds."""
  folder = small(
      tmp_path, {('control', ()): {s: [20 + s] * 6 for s in (0, 1, 2, 3)}}
  )
  study = json.loads((folder / study_file.FILE).read_text())
  for one in study['rows']:
    one['target_seed'] = one['seed'] // 2
  (folder / study_file.FILE).write_text(json.dumps(study))
  (one,) = ranking.rankings(rows.read(folder))
  assert one.seeds == (0, 1)
  value = one.value(one.entries[0])
  assert value.value == pytest.approx(2.15)
  # Means 2.05 and 2.25 of two targets, not the spread of four seeds.
  assert value.error == pytest.approx(np.std([2.05, 2.25], ddof=1) / 2**0.5)


@pytest.fixture(scope='module')
def studies(tmp_path_factory):
  """Kind -> study, of three kinds."""
  found = {}
  for make in (made_up.grid, made_up.lossy, made_up.garden, made_up.transfer):
    name = make.__name__
    found[name] = rows.read(make(tmp_path_factory.mktemp(name)))
  return found


def panels(study, title):
  found = study_figures.sections(study, ranking.rankings(study))
  return [p for one in found if one.title == title for p in one.panels]


def card(study, what):
  found = study_cards.cards(study, ranking.rankings(study))
  return next(card for card in found if card.what.startswith(what))


def test_a_heat_map_has_the_values_of_the_ranking(studies):
  study = studies['grid']
  greedy, sampled = panels(study, 'Heat maps')
  assert greedy.title == 'Greedy, block length 5'
  assert greedy.axis_names == ('divergence', 'data')
  one = ranking.rankings(study)[0]
  for (row, column), cell in greedy.cells.items():
    labels = {'divergence': greedy.rows[row], 'data': greedy.columns[column]}
    entries = [each for each in one.entries if each.row.labels == labels]
    if not entries:
      assert (cell.value, cell.note) == (None, 'failed')
      assert labels == {'divergence': 'total variation', 'data': 'mixed'}
      continue
    assert cell.value == one.value(entries[0])
    assert cell.is_best == (entries[0].rank == 1)
    if entries[0].missing:
      assert cell.note == '2 of 3 seeds'
  assert len(sampled.cells) == len(greedy.cells) == 16
  assert 'JSD, draft: 2.' in greedy.alt and 'best' in greedy.alt


def test_figures_of_a_heat_map_have_themes_and_numbers(studies):
  greedy, _ = panels(studies['grid'], 'Heat maps')
  svg, png = drawing.images(greedy)
  assert png[:4] == b'\x89PNG' and '#' not in svg.replace(
      'href="#', ''
  ).replace('url(#', '')
  value = next(cell.value for cell in greedy.cells.values() if cell.is_best)
  assert f'>{value.value:.2f}<' in svg and f'>± {value.error:.2f}<' in svg
  alone = drawing.standalone(greedy)
  assert alone.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
  assert 'prefers-color-scheme: dark' in alone


def test_on_policy_and_fixed_data_are_compared_where_all_else_is_equal(studies):
  found = card(studies['grid'], 'Does on-policy')
  assert found.badge == 'yes'
  pairs = {(row[1], row[2]) for row in found.table.body}
  assert pairs == {
      (f'{name}, labels', f'{name}, draft')
      for name in ('forward KL', 'reverse KL', 'JSD', 'total variation')
  }


def test_a_garden_is_drawn_by_latency(studies):
  study = studies['garden']
  (panel,) = panels(study, 'Quality against speed')
  assert [one.label for one in panel.series] == [
      'standard', 'speculative', 'distilled target', 'DistillSpec',
  ]  # fmt: skip
  (one,) = ranking.rankings(study)
  entries = {entry.row.name: entry for entry in one.entries}
  entry = entries['standard, small']
  speed = one.value(entry)
  point = panel.series[0].points[0]
  assert point.note == 'small'
  assert point.at == pytest.approx(1000 / speed.value)
  assert point.at_error == pytest.approx(1000 * speed.error / speed.value**2)
  assert point.value == entry.quality.metrics['rouge2']
  fastest = card(study, 'How much faster')
  assert fastest.badge == 'DistillSpec, base'
  slow, fast = (
      one.value(entries[name])
      for name in ('standard, large', 'DistillSpec, base')
  )
  assert fastest.number == f'{fast.value / slow.value:.2f} ×'


def test_lenience_has_a_curve_for_each_function_and_residual(studies):
  study = studies['lossy']
  titles = {}
  for panel in panels(study, 'Quality against speed'):
    titles[panel.title] = panel.series
  assert list(titles) == [
      f'Distilled: {residual} residual, T = 1, block length 5'
      for residual in ('target', 'relaxed')
  ]
  series = {one.label: one for one in titles[list(titles)[0]]}
  assert list(series) == [
      'linear', 'square', 'exp', 'lossless', 'truncated sampling, top p',
      'the target’s text',
  ]  # fmt: skip
  assert [p.note for p in series['exp'].points] == ['0.8', '0.5', '0.2']
  (one,) = ranking.rankings(study)
  lossless = one.entry(study.rows[0])
  level = series['the target’s text']
  assert level.style == 'level'
  assert level.points[0].value == lossless.quality.metrics['rouge2']
  found = card(study, 'How much quality')
  best = next(
      e for e in one.entries if e.change and e.change.text() == found.number
  )
  assert best.row.labels['function'] == 'exp'
  assert 'Truncated sampling' in found.detail and 'no loss' in found.detail


def test_the_average_of_a_transfer_by_hand(studies):
  study = studies['transfer']
  found = card(study, 'Does it transfer?')
  by_seed = []  # logs of ratios to the control, of tasks but the first
  for one in ranking.rankings(study):
    if one.decoding['temperature'] == 0 and one.task != 'en_de':
      values = [
          [v['block_efficiency'].value for v in e.measurement.by_seed.values()]
          for e in sorted(one.entries, key=lambda e: e.row.title)
      ]
      by_seed.append(np.log(np.divide(*values)))
  assert np.shape(by_seed) == (2, 3)
  expected = 100 * np.expm1(np.mean(by_seed))
  assert found.number.startswith(f'{expected:+.1f} ± ')
  assert 'same weight' in found.detail and 'all but en de' in found.detail
  assert len(found.table.body) == 4


def test_single_examples_before_and_after(pair):
  (panel,) = panels(rows.read(pair), 'Single examples')
  (cloud,) = panel.series
  points = sorted((point.at, point.value.value) for point in cloud.points)
  expected = [
      (x / 10, y / 10)
      for seed in CONTROL
      for x, y in zip(CONTROL[seed], BETTER[seed])
  ]
  np.testing.assert_allclose(points, sorted(expected))
  assert cloud.label == '83% above, 0% below the diagonal'
  assert panel.diagonal and '18 points whose mean is 2.39 at 2.00' in panel.alt


def test_the_tightness_of_the_bound_by_hand(pair):
  shared = made_up.acceptance(
      np.ones(2), np.ones(2), draft='better', settings=made_up.decoding(0.0),
      seed=0,
  )  # fmt: skip
  records = [
      {
          **{name: shared[name] for name in example_records._SAME[:7]},
          'seed': 0, 'inputs': 'i', 'example': i, 'emitted': 32,
          'expected': 24.0, 'draft_emitted': 10, 'draft_variation': variation,
      }
      for i, variation in enumerate((1.25, 0.05))
  ]  # fmt: skip
  folder = pair / 'seed_0' / 'better_'
  text = ''.join(json.dumps(one) + '\n' for one in records)
  (folder / example_records.FILE).write_text(text)
  (panel,) = panels(rows.read(pair), 'How tight is the bound?')
  (cloud,) = panel.series
  # Rejection 8 / 32; variation per token 0.125 and 0.005.
  points = [(point.at, point.value.value) for point in cloud.points]
  np.testing.assert_allclose(points, [(0.125, 0.25), (0.005, 0.25)])
  # T = 64, L = 32: bounds 128 x 0.125 = 16 and 0.64, so 64 and 2.56 times 0.25.
  assert cloud.label == 'better: bound 33 × larger (median), below 1 for 50%'


def test_of_perplexity_the_smallest_is_the_best(tmp_path):
  entries = []
  for name, value in (('high', 30.0), ('low', 20.0)):
    one = made_up.row(name, {}, 0)
    entries.append(one)
    line = made_up.line(
        'task_quality', {'perplexity': made_up.metric(value, 1.0)}, draft=name,
        settings=made_up.plain(0.0, model=name), seed=0,
    )  # fmt: skip
    made_up.write(tmp_path / one['results'][0], [line])
  study = rows.read(made_up.finish(tmp_path, 'grid', [], entries))
  (one,) = ranking.rankings(study, 'perplexity')
  assert [entry.row.name for entry in one.ranked] == ['low', 'high']


def test_many_curves_are_split_into_panels_with_the_same_axes(studies):
  training = panels(studies['grid'], 'Training')
  parts = [p for p in training if p.name.startswith('distillation_loss')]
  assert len(parts) == 3  # of fifteen runs
  assert all(len(part.series) == 5 for part in parts)
  assert len({part.limits for part in parts}) == 1


def test_the_measure_can_be_chosen(studies):
  study = studies['grid']
  one = ranking.rankings(study, 'expected_acceptance')[0]
  rates = [one.value(entry).value for entry in one.ranked]
  assert rates == sorted(rates, reverse=True) and max(rates) < 1
  with pytest.raises(
      errors.UserError, match="'rouge9'; choose one of .*block_"
  ):
    ranking.rankings(study, 'rouge9')


def test_a_measure_needs_a_study(tmp_path):
  made_up.write(tmp_path, made_up.training('draft', 0, 'jsd', 0.0))
  with pytest.raises(errors.UserError, match='is no study'):
    report.report(run=str(tmp_path), measure='block_efficiency')


def test_a_control_must_be_a_row(pair):
  study = json.loads((pair / study_file.FILE).read_text())
  study['rows'][-1]['control'] = 'nobody'
  (pair / study_file.FILE).write_text(json.dumps(study))
  with pytest.raises(errors.UserError, match="'better'.*'nobody'"):
    rows.read(pair)
