"""Tables: every row, definitions of the columns that are there."""

from distillspec_jax.reporting import rows
from distillspec_jax.reporting import tables


def study(lines):
  (found,) = rows.studies(list(lines))
  return found


def test_all_kinds_have_a_table(lines):
  titles = [table.title for table in tables.tables(study(lines))]
  assert titles == [
      'Acceptance and block efficiency', 'Wall clock', 'Task quality',
  ]  # fmt: skip


def test_rows_have_a_cell_a_column(lines):
  for table in tables.tables(study(lines)):
    assert table.body
    assert all(len(row) == len(table.header) for row in table.body)
    assert all(isinstance(cell, str) for row in table.body for cell in row)


def test_drafts_of_one_setting_stand_together(lines):
  table = tables.acceptance(study(lines))
  assert [row[0] for row in table.body[:3]] == [
      'fine-tuned', 'fine-tuned longer', 'distilled',
  ]  # fmt: skip
  assert [row[2] for row in table.body[:4]] == ['1', '1', '1', '2']
  assert table.body[0][-2:] == ['3', '128']


def test_autoregressive_decoding_is_one_row_a_batch(lines):
  table = tables.latency(study(lines))
  plain = [row for row in table.body if row[0] == 'none (autoregressive)']
  assert len(plain) == 2
  assert '–' in plain[0]


def test_columns_without_data_are_left_out_with_their_definitions(made_up):
  lines = list(made_up['latency'](['distilled']))
  for line in lines:
    line['metrics'].pop('verify_ratio', None)
  table = tables.latency(study(lines))
  terms = [term for term, _ in table.definitions]
  assert 'v' not in table.header and 'v' not in terms
  assert 'c' in table.header and 'c' in terms


def test_the_plan_is_shown_beside_every_block_length(made_up):
  lines = list(made_up['latency'](['distilled']))
  assert 'planned' not in tables.latency(study(lines)).header
  metric = made_up['metric']
  for line, planned in zip(lines[1::2], (3, 3, 0, 0)):  # batch 1, batch 8
    line['metrics']['planned_block_length'] = metric(planned, unit='tokens')
    line['metrics']['planned_speedup'] = metric(1.25 if planned else 1.0)
  table = tables.latency(study(lines))
  at = table.header.index('planned')
  cells = [row[at] for row in table.body]
  assert cells == ['–', '3: 1.25', '3: 1.25', '–', 'none', 'none']
  assert 'planned' in [term for term, _ in table.definitions]


def test_the_gain_of_a_rule_stands_beside_it(made_up):
  first, *lines = made_up['acceptance']((0,), ['distilled'])
  first['metrics']['block_efficiency_gain'] = made_up['metric'](0.05, 0.01)
  table = tables.acceptance(study([first, *lines]))
  at = table.header.index('gain')
  assert table.body[0][at] == '0.050 ± 0.010'
  assert 'gain' not in tables.acceptance(study(lines)).header


def test_settings_have_a_column_only_where_they_differ(made_up):
  lines = list(made_up['acceptance']((0,), ['distilled']))
  assert 'top k' not in tables.acceptance(study(lines)).header
  lines[0]['decoding']['top_k'] = 40
  assert 'top k' in tables.acceptance(study(lines)).header


def test_what_has_no_table_of_its_own_is_listed(made_up):
  metrics = {'worst': made_up['metric'](1e-9, unit='nats')}
  (table,) = tables.tables(study([made_up['line']('certificate', metrics)]))
  assert table.body == [
      ['certificate', 'made_up', '–', 'worst', '1e-09', 'nats']
  ]


def test_plans_are_a_row_a_slice(made_up):
  table = tables.plans(study(made_up['plans']()))
  assert len(table.body) == 3
  row = dict(zip(table.header, table.body[1]))
  assert row['slice'] == 'v5e-256' and row['memory, GiB'] == '8.00'
  assert row['MFU, %'] == '45' and row['speed-up'] == '0.6: 1.70'
  # The one that does not fit has no times.
  assert dict(zip(table.header, table.body[2]))['step, s'] == '–'


def test_a_study_without_measurements_has_no_tables(made_up):
  assert tables.tables(study(made_up['training']((0,)))) == []
