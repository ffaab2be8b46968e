"""The plan beside speed-ups that were published, and how the table is made."""

import json

import plan_anchors
import pytest

# The paper's formula, with the c that it measured, expects 2.5 and 2.0 here,
# where 1.7 and 1.4 were measured.
MISSED = {
    ('En-De, greedy, blocks of 7', 'large'),
    ('En-De, sampled, blocks of 3', 'large'),
}


@pytest.fixture(name='content', scope='module')
def _content():
  return json.loads(plan_anchors.RESULTS.read_text())


def test_the_plan_is_near_what_was_published(content):
  rows = list(plan_anchors.compared(content))
  assert {'small', 'base', 'large'} <= {row.draft for row in rows}
  assert {(row.what, row.draft) for row in rows if row.is_missed} == MISSED


def test_nothing_impossible_is_planned(content):
  for row in plan_anchors.compared(content):
    if row.limit is None:
      assert row.planned >= 1.0  # a block is no less work than a token
    else:
      assert 0.0 < row.planned <= row.limit


def test_without_its_floor_the_plan_would_be_wrong(content, monkeypatch):
  # As the compiler has it, eight tokens of XXL take less time than one.
  ratio = plan_anchors.estimate.Sampling.verify_ratio
  seen = []

  def recorded(self, length):
    seen.append(ratio(self, length))
    return seen[-1]

  monkeypatch.setattr(plan_anchors.estimate.Sampling, 'verify_ratio', recorded)
  assert list(plan_anchors.compared(content))
  assert seen[0] < 0.5


def test_what_was_not_compiled_is_named(content):
  less = {**content, 'lines': content['lines'][:2]}
  assert 'base on v4, autoregressive' in plan_anchors.absent(less)
  assert {row.draft for row in plan_anchors.compared(less)} == {'small'}


def test_the_programs_are_of_one_chip_at_batch_one():
  for _, *pair in plan_anchors.PROGRAMS:
    config = plan_anchors.planned(*pair)
    config.check()
    assert (config.decode_batch_size, config.topology.chips) == (1, 1)
