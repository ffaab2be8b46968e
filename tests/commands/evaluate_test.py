"""Every way to speculate is measured in one command, and shown in a table."""

import pytest

from distillspec_jax.commands import evaluate
from distillspec_jax.core import results
from distillspec_jax.evaluation import acceptance
from distillspec_jax.sampling import decoding as decoding_lib


@pytest.mark.usefixtures('fresh_configuration')
def test_all_combinations_of_the_grid_are_measured(measure, tmp_path, capsys):
  code = measure(
      'evaluate',
      tmp_path,
      "--gin.tasks.json_lines.metrics=('exact_match',)",
      '--gin.acceptance.evaluate.batch_size=6',
      '--gin.decoding.grid.temperatures=(1.0,)',
      '--gin.decoding.grid.block_lengths=(3,)',
      '--gin.decoding.grid.verifiers='
      "('token', 'block', 'lenient(linear, 0.5)')",
      '--gin.decoding.grid.paths=(1, 2)',
      "--gin.decoding.grid.adaptive=(None, 'confidence(0.4)')",
  )
  printed = capsys.readouterr()
  assert code == 0, printed.err
  assert printed.out == ''
  lines = results.read(tmp_path / results.FILE)
  ways = {
      kind: [
          (d['verifier'], d['paths'], d['adaptive'])
          for line in lines
          for d in [line['decoding']]
          if line['kind'] == kind and d['block_length']
      ]
      for kind in ('acceptance', 'task_quality')
  }
  assert ways['acceptance'] == [
      ('token', 1, None),
      ('block', 1, None),
      ('lenient(linear, 0.5)', 1, None),
      ('token', 1, 'confidence(0.4)'),
      ('block', 1, 'confidence(0.4)'),
      ('lenient(linear, 0.5)', 1, 'confidence(0.4)'),
      ('token', 2, None),
      ('token', 2, 'confidence(0.4)'),
  ]
  assert ways['task_quality'] == ways['acceptance']
  quality = [x for x in lines if x['kind'] == 'task_quality']
  models = [line['decoding']['model'] for line in quality]
  assert models == ['pair'] * 8 + ['target', 'draft']
  assert all('exact_match' in line['metrics'] for line in quality)
  table = printed.err[printed.err.index('draft, json_lines validation') :]
  assert table.count('T = 1, block length 3') == 8
  assert 'exact_match' in table


def metric(value, error=None):
  return results.Metric(value, error, 4, '1')


def test_a_table_has_a_row_for_each_decoding():
  measured = [
      acceptance.Measured(
          decoding_lib.Decoding(),
          {
              'expected_acceptance': metric(0.5, 0.01),
              'block_efficiency': metric(2.0),
          },
          {},
      ),
      acceptance.Measured(
          decoding_lib.Decoding(
              sampling=decoding_lib.Sampling(temperature=1.0)
          ),
          {
              'expected_acceptance': metric(0.25),
              'block_efficiency': metric(1.5),
              'block_efficiency_gain': metric(0.125),
          },
          {'exact_match': metric(0.75)},
      ),
      acceptance.Measured(
          decoding_lib.Decoding(), {}, {'exact_match': metric(0.5)}, 'target'
      ),
  ]
  (table,) = evaluate.tables('the title', measured)
  assert table.title == 'the title'
  columns = {column.header: list(column.cells) for column in table.columns}
  assert columns == {
      'decoding': [
          'greedy, block length 5', 'T = 1, block length 5',
          'target alone, greedy',
      ],
      'expected acceptance': ['0.500 ± 0.010', '0.250', '–'],
      'tokens per target call': ['2.000', '1.500', '–'],
      'gain': ['–', '0.125', '–'],
      'exact_match': ['–', '0.750', '0.500'],
  }  # fmt: skip
