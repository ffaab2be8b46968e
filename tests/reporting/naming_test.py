"""Different runs have different names; seeds of one study share a name."""

import pytest

from distillspec_jax.reporting import naming


def names(*runs):
  return list(naming.names({run[:2]: run[2:] for run in runs}).values())


@pytest.mark.parametrize(
    'runs, expected',
    [
        ([('target', 0), ('seed_0/fine-tuned', 0), ('seed_1/fine-tuned', 1)],
         ['target', 'fine-tuned', 'fine-tuned']),
        ([('kd_0/draft', 0), ('kd_1/draft', 1), ('jsd_0/draft', 0)],
         ['kd', 'kd', 'jsd 0']),
        # One folder with several seeds.
        ([('fine-tuned_longer', 0), ('fine-tuned_longer', 1)],
         ['fine-tuned longer'] * 2),
        # Numbers that are not the seed are what differs.
        ([('lr_1/draft', 0), ('lr_2/draft', 0)], ['lr 1', 'lr 2']),
        ([('lr_1/draft', 0), ('lr_2/draft', 1)], ['lr 1', 'lr 2']),
        ([('v1_0/draft', 0), ('v1_1/draft', 1)], ['draft', 'draft']),
        # As a path that ends in the other one.
        ([('draft', 0), ('a/draft', 0)], ['draft', 'a/draft']),
        ([('a/x/draft', 0), ('b/x/draft', 0)], ['a', 'b']),
        # Made in different ways.
        ([('s_0/draft', 0, 'kd'), ('s_1/draft', 1, 'jsd')], ['s 0', 's 1']),
        ([('s_0', 0, {'start': 'seed_0/a'}), ('s_1', 1, {'start': 'seed_1/a'})],
         ['s', 's']),
    ],
)  # fmt: skip
def test_names_are_short_and_unique(runs, expected):
  assert names(*runs) == expected


def test_six_runs_of_a_study_keep_their_names():
  runs = [
      (f'study/{method}_{seed}/draft', seed)
      for method in ('supervised_kd', 'on_policy_jsd', 'seqkd')
      for seed in (0, 1)
  ]
  assert names(*runs) == [
      'supervised kd', 'supervised kd', 'on policy jsd', 'on policy jsd',
      'seqkd', 'seqkd',
  ]  # fmt: skip
