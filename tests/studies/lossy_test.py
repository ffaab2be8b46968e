"""Lossy: every lenience, and the truncated distribution beside it."""

import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.core import study_file
from distillspec_jax.studies import lossy

SMALL = {'functions': ('linear', 'square'), 'epsilons': (0.5, 0.1)}


def lossy_of(stages, **changes):
  return lossy.Lossy(
      setup=stages.setup(**changes.pop('setup', {})), **SMALL | changes
  )


def test_each_row_has_lines_of_its_own_in_the_results(stages):
  truncations = lossy.truncations(temperatures=(0.5,), top_k=(3,), top_p=(0.9,))
  stages.run(lossy_of(stages, truncations=truncations, drafts=('distilled',)))
  rows = study_file.read(stages.root)['rows']
  # Lossless, and two functions of two epsilons: greedy, and with two residuals.
  assert len(rows) == (1 + 4) + (1 + 8) + 3
  assert len({row.name for row in rows}) == len(rows)
  assert len({str(row.labels) for row in rows}) == len(rows)
  for row in rows:
    of = row.lines['efficiency']
    (folder,) = row.results
    lines = results.read(stages.root / folder / results.FILE)
    found = [
        line
        for line in lines
        if all({**line['decoding'], **line}[key] == of[key] for key in of)
    ]
    assert len(found) == 1, row.name
  by_name = {row.name: row for row in rows}
  row = next(
      row
      for row in rows
      if row.labels.get('residual') == 'relaxed'
      and row.labels['function'] == 'square'
      and row.labels['epsilon'] == 0.1
  )
  assert row.lines['efficiency']['verifier'] == 'lenient(square, 0.1, relaxed)'
  assert by_name[row.control].labels == {
      'function': 'lossless', 'draft': 'distilled', 'temperature': 1.0,
  }  # fmt: skip
  assert row.lines['quality']['model'] == 'pair'
  greedy = next(row for row in rows if row.labels['temperature'] == 0.0)
  assert greedy.lines['quality']['model'] == 'target'
  assert len(stages.measured) == len(set(stages.measured)) == 2 + 4 + 1


def test_drafts_that_are_not_measured_are_not_trained(stages):
  stages.run(lossy_of(stages, drafts=('fine-tuned',), temperatures=(1.0,)))
  assert stages.trained == ['target', 'seed_0/fine-tuned']


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'epsilons': (0.1, 0.1)}, 'each item once, 0.1 too'),
        ({'epsilons': (1.0,)}, 'epsilons has 1, which is lossless'),
        ({'epsilons': (2.0,)}, r'epsilon is 2.0; it must lie in \[1e-6, 1\]'),
        ({'functions': ('cubic',)}, "function is 'cubic'"),
        ({'drafts': ('mine',)}, "drafts is 'mine'"),
        ({'setup': {'control': None}}, 'but Setup.control is None'),
        ({'truncations': (0.9,)}, 'give Sampling objects'),
        ({'drafts': ()}, 'must each have at least one value'),
    ],
)
def test_what_does_not_fit_is_refused(stages, changes, message):
  with pytest.raises(errors.UserError, match=message):
    lossy_of(stages, **changes)
