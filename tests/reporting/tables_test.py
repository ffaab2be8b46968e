"""Tables have every measurement, and define the columns that are there."""

import pytest

from distillspec_jax.reporting import measurements
from distillspec_jax.reporting import tables


def draw(lines):
  (study,) = measurements.studies(list(lines))
  return {table.title: table for table in tables.tables(study)}


def acceptance(lines):
  return draw(lines)['Acceptance and block efficiency']


def column(table, name):
  at = table.header.index(name)
  return [row[at] for row in table.body]


def test_all_kinds_have_a_table(lines):
  assert list(draw(lines)) == [
      'Acceptance and block efficiency',
      'Lossy verification',
      'Wall clock',
      'Task quality',
      'How the models were made',
  ]


def test_rows_have_one_cell_per_column(lines):
  for table in draw(lines).values():
    assert table.body
    assert all(len(row) == len(table.header) for row in table.body)
    assert all(isinstance(cell, str) for row in table.body for cell in row)


def test_drafts_under_the_same_setting_are_adjacent(lines):
  table = acceptance(lines)
  assert column(table, 'draft')[:3] == [
      'fine-tuned', 'fine-tuned longer', 'distilled',
  ]  # fmt: skip
  assert column(table, 'block length')[:4] == ['1', '1', '1', '2']
  assert table.body[0][-2:] == ['3', '128']


def test_autoregressive_decoding_is_one_row_per_batch_size(lines):
  table = draw(lines)['Wall clock']
  assert column(table, 'draft').count('autoregressive') == 2
  assert '–' in table.body[0]


def test_empty_columns_are_left_out_with_their_definitions(made_up):
  lines = list(made_up['latency'](['distilled']))
  for line in lines:
    line['metrics'].pop('verify_ratio', None)
  table = draw(lines)['Wall clock']
  terms = [term for term, _ in table.definitions]
  assert 'v' not in table.header and 'v' not in terms
  assert 'c' in table.header and 'c' in terms
  assert terms[-1] == '±'


def test_the_plan_is_shown_with_every_block_length(made_up):
  lines = list(made_up['latency'](['distilled']))
  assert 'planned' not in draw(lines)['Wall clock'].header
  metric = made_up['metric']
  for line, planned in zip(lines[1::2], (3, 3, 0, 0)):  # batch 1, batch 8
    line['metrics']['planned_block_length'] = metric(planned, unit='tokens')
    line['metrics']['planned_speedup'] = metric(1.25 if planned else 1.0)
  table = draw(lines)['Wall clock']
  assert column(table, 'planned') == [
      '–', '3: 1.25', '3: 1.25', '–', 'none', 'none',
  ]  # fmt: skip
  assert 'planned' in [term for term, _ in table.definitions]


def test_the_gain_of_a_verifier_is_shown(made_up):
  first, *lines = made_up['acceptance']((0,), ['distilled'])
  first['metrics']['block_efficiency_gain'] = made_up['metric'](0.05, 0.01)
  assert column(acceptance([first, *lines]), 'gain')[0] == '0.050 ± 0.010'
  assert 'gain' not in acceptance(lines).header


@pytest.mark.parametrize(
    'name, setting',
    [
        ('top k', 40),
        ('verifier', 'block'),
        ('paths', 4),
        ('adaptive', 'confidence(0.4)'),
        ('max new tokens', 32),
    ],
)
def test_rare_settings_have_a_column_where_they_matter(made_up, name, setting):
  lines = list(made_up['acceptance']((0,), ['distilled']))
  assert name not in acceptance(lines).header
  lines[0]['decoding'][name.replace(' ', '_')] = setting
  table = acceptance(lines)
  assert len(table.body) == len(lines)
  assert str(setting) in column(table, name)


def test_a_setting_that_all_share_is_shown_unless_it_is_the_default(made_up):
  lines = list(made_up['latency'](['distilled']))
  assert 'verifier' not in draw(lines)['Wall clock'].header
  for line in lines:
    if line['draft']:
      line['decoding']['verifier'] = 'lenient(linear, 0.5)'
      line['decoding']['lossless'] = False
  cells = column(draw(lines)['Wall clock'], 'verifier')
  assert set(cells) == {'–', 'lenient(linear, 0.5)'}


def test_lossy_verifiers_are_compared_with_the_lossless_one(lines):
  table = draw(lines)['Lossy verification']
  assert column(table, 'verifier')[:2] == ['token', 'lenient(linear, 0.3)']
  assert column(table, 'exact match')[1] == '0.400 ± 0.020'
  assert column(table, 'tokens per target call')[1] == '3.200 ± 0.050'


def test_task_quality_names_who_generated_the_outputs(lines):
  table = draw(lines)['Task quality']
  assert table.header[:2] == ['model', 'sampling']
  models = column(table, 'model')
  assert models[0] == 'target'
  assert models.count('target with distilled draft') == 5


def test_the_time_of_a_block_is_broken_down(made_up):
  metric = made_up['metric']
  lines = list(made_up['latency'](['distilled']))
  assert 'Time per block' not in draw(lines)
  lines[1]['metrics'] |= {
      'block_ms': metric(4.0, unit='ms'),
      'block_draft_steps_ms': metric(1.0, unit='ms'),
      'prefill_target_ms': metric(2.0, unit='ms'),
  }
  body = draw(lines)['Time per block'].body
  assert [row[1:] for row in body] == [
      ['block', '4.000', '100 %'],
      ['draft steps', '1.000', '25 %'],
      ['prefill target', '2.000', '50 %'],
  ]
  assert body[0][0] == 'distilled draft, batch 1, greedy, block length 2'


def test_certificates_are_listed(made_up):
  metrics = {'worst': made_up['metric'](1e-9, unit='nats')}
  table = draw([made_up['line']('certificate', metrics)])['Certificates']
  assert table.body == [['made_up', '–', 'worst', '1e-09', 'nats']]


def test_every_plan_has_a_row(made_up):
  table = draw(made_up['plans']())['Plans for TPU slices']
  assert len(table.body) == 3
  row = dict(zip(table.header, table.body[1]))
  assert row['slice'] == 'v5e-256' and row['memory, GiB'] == '8.00'
  assert row['MFU, %'] == '45' and row['speed-up'] == '0.6: 1.70'
  # The one that does not fit has no times.
  assert dict(zip(table.header, table.body[2]))['step, s'] == '–'


def test_a_study_without_measurements_has_one_table(made_up):
  assert list(draw(made_up['training']((0,)))) == ['How the models were made']
