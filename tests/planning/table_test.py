"""Plans as text, on handmade programs."""

from distillspec_jax.planning import table
from tests.planning import tiny


def test_the_table_has_a_column_for_each_plan():
  plan = tiny.plan(tiny.gather('f32[4,1,256]', 4096))
  text = table.text([plan, plan])
  (row,) = [x for x in text.splitlines() if 'parameters of the target' in x]
  assert row.split()[-2:] == ['1.00', '1.00']
  assert '8 x all-gather f32[4,1,256] between 2 chips, waited for' in text
  (row,) = [x for x in text.splitlines() if 'all-gathers of logits' in x]
  assert row.split()[-2:] == ['8', '8']  # a count has no decimals


def test_what_does_not_fit_is_explained_below_it():
  text = table.text([tiny.too_large()])
  (row,) = [x for x in text.splitlines() if x.startswith('fits')]
  assert row.split()[-1] == 'no'
  assert '4.25 GiB too many' in text
  assert 'A training step' not in text  # there is nothing to tell of it
