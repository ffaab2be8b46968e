"""An experiment shows the tables of the commands that it contains."""

import pytest

from distillspec_jax.commands import experiment
from distillspec_jax.core import results
from distillspec_jax.evaluation import acceptance
from distillspec_jax.evaluation.speed import latency
from distillspec_jax.sampling import decoding as decoding_lib


def metrics(*names):
  return {name: results.Metric(2.0, None, 1, '1') for name in names}


@pytest.mark.parametrize(
    'measured, column',
    [
        (
            acceptance.Measured(
                decoding_lib.Decoding(),
                metrics('expected_acceptance', 'block_efficiency'),
                {},
            ),
            'expected acceptance',
        ),
        (
            latency.Measured(
                batch_size=1,
                decodings=[decoding_lib.Decoding()],
                costs=None,
                plain=metrics('tokens_per_second'),
                fast=[
                    metrics(
                        'tokens_per_second', 'measured_speedup', 'cost_ratio'
                    )
                ],
                pairs=[],
                plan=None,
            ),
            'tokens/s',
        ),
    ],
    ids=['evaluate', 'benchmark'],
)
def test_tables_of_both_stages_are_shown(capsys, measured, column):
  experiment.show('the title', [measured])
  error = capsys.readouterr().err
  assert 'the title' in error and column in error
  assert 'greedy, block length 5' in error
