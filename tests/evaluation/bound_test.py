"""The bound holds, and is 1 for a draft that is the target."""

import numpy as np
import pytest

from distillspec_jax.core import results
from distillspec_jax.evaluation import bound
from tests import tiny


def evaluate(folder, draft, **changes):
  pair = {
      who: tiny.with_vocabulary(one, None)
      for who, one in (('target', tiny.target(tiny.BYTES)), ('draft', draft))
  }
  (line,) = bound.evaluate_bound(
      run=str(folder / 'run'), task=tiny.task(folder / 'data'), examples=6,
      **pair | {'batch_size': 6} | changes,
  )  # fmt: skip
  return line


def test_a_draft_that_is_the_target_is_accepted_as_the_bound_says(tmp_path):
  metrics = evaluate(tmp_path, tiny.target(tiny.BYTES))['metrics']
  assert metrics['draft_text_tvd']['value'] == pytest.approx(0, abs=1e-5)
  assert metrics['acceptance_bound']['value'] == pytest.approx(1, abs=1e-3)
  assert metrics['expected_acceptance']['value'] == pytest.approx(1, abs=1e-5)


def test_no_example_is_below_its_bound(tmp_path):
  line = evaluate(tmp_path, tiny.draft(tiny.BYTES))
  assert results.read(tmp_path / 'run' / results.FILE)[0]['kind'] == 'bound'
  columns = line['examples']['metrics']
  accepted, lengths = map(np.array, columns['expected_acceptance'])
  on_draft, draft_lengths = map(np.array, columns['draft_text_acceptance'])
  (least,) = map(np.array, columns['acceptance_bound'])
  tvd = 1 - on_draft / draft_lengths
  assert np.all(tvd > 0.01)  # the draft is another model
  np.testing.assert_allclose(least, 1 - 12**2 * tvd / lengths, rtol=1e-4)
  assert np.all(least < accepted / lengths)
  # As in blocks, whatever the batches: of sampled text, so of the same keys.
  (tmp_path / 'run' / results.FILE).unlink()
  again = evaluate(tmp_path, tiny.draft(tiny.BYTES), batch_size=4)
  for name, metric in line['metrics'].items():
    value = again['metrics'][name]['value']
    assert value == pytest.approx(metric['value'], rel=1e-4)
