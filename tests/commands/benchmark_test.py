"""Every way to speculate is timed in one command, and shown in tables."""

import pytest

from distillspec_jax.core import results


@pytest.mark.usefixtures('fresh_configuration')
def test_all_combinations_of_the_grid_are_timed(measure, tmp_path, capsys):
  code = measure(
      'benchmark',
      tmp_path,
      '--gin.latency.benchmark.batch_sizes=(2,)',
      '--gin.latency.benchmark.repeats=2',
      '--gin.decoding.grid.temperatures=(1.0,)',
      '--gin.decoding.grid.block_lengths=(2,)',
      "--gin.decoding.grid.verifiers=('token', 'lenient(linear, 0.5)')",
      '--gin.decoding.grid.paths=(1, 2)',
  )
  printed = capsys.readouterr()
  assert code == 0, printed.err
  assert printed.out == ''
  lines = results.read(tmp_path / results.FILE)
  assert {line['kind'] for line in lines} == {'latency'}
  ways = [line['decoding'] for line in lines]
  assert [(d['verifier'], d['paths']) for d in ways] == [
      (None, None), ('token', 1),
      (None, None), ('lenient(linear, 0.5)', 1),
      (None, None), ('token', 2),
  ]  # fmt: skip
  for title in ('', ': choice of block length'):
    assert f'draft, json_lines validation{title}' in printed.err
  assert 'tokens/s' in printed.err
