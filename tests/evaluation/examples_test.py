"""Which examples are measured, and which rows hold none."""

import jax
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.data import tasks
from distillspec_jax.evaluation import examples
from tests import tiny


@pytest.fixture(scope='module')
def task(tmp_path_factory):
  return tiny.task(tmp_path_factory.mktemp('task'))


def rows_of(batches):
  """All rows that hold an example, [n, S + T]."""
  return np.concatenate(
      [
          np.concatenate([b.inputs, b.labels], axis=1)[examples.real_rows(b)]
          for b in batches
      ]
  )


@pytest.mark.parametrize('batch_size', [1, 2, 3, 4, 6, 50])
@pytest.mark.parametrize('number', [1, 5, 6, 50])
def test_first_are_the_same_whatever_the_batch(task, number, batch_size):
  batches = examples.first(task, 'validation', number, batch_size)
  expected = rows_of(examples.first(task, 'validation', 6, 6))[:number]
  np.testing.assert_array_equal(rows_of(batches), expected)
  assert len({b.inputs.shape for b in batches}) == 1


def test_rows_that_are_left_over_are_empty(task):
  last = examples.first(task, 'validation', 5, 3)[-1]
  np.testing.assert_array_equal(examples.real_rows(last), [True, True, False])
  for leaf in jax.tree.leaves(last):
    assert not leaf[2].any()


def test_repeated_starts_again_where_examples_run_out(task):
  batches = examples.repeated(task, 'validation', 4, batch_size=3, number=3)
  every = rows_of(examples.first(task, 'validation', 4, 4))
  assert [len(b.inputs) for b in batches] == [3, 3, 3]
  np.testing.assert_array_equal(rows_of(batches), every[np.arange(9) % 4])


def test_repeated_takes_no_empty_row_of_a_short_split(task):
  (batch,) = examples.repeated(task, 'validation', 50, batch_size=8, number=1)
  assert examples.real_rows(batch).all()
  np.testing.assert_array_equal(batch.inputs[6:], batch.inputs[:2])


def test_a_row_is_real_if_it_has_an_input_or_a_label():
  inputs = np.array([[1], [0], [1], [0]], np.int32)
  labels = np.array([[1], [1], [0], [0]], np.int32)
  batch = types.Batch(inputs, inputs, labels, labels, labels > 0)
  np.testing.assert_array_equal(
      examples.real_rows(batch), [True, True, True, False]
  )


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda t: examples.first(t, 'validation', 0, 4), 'examples is 0'),
        (lambda t: examples.first(t, 'validation', 4, 0), 'batch_size is 0'),
        (lambda t: examples.first(t, 'nowhere', 4, 4), "no split 'nowhere'"),
        (
            lambda t: examples.repeated(t, 'validation', 4, 0, 1),
            'batch_size is 0',
        ),
        (
            lambda t: examples.repeated(t, 'validation', 0, 4, 1),
            'examples is 0',
        ),
    ],
)
def test_wrong_numbers_are_errors(task, call, message):
  with pytest.raises(errors.UserError, match=message):
    call(task)


def test_a_fingerprint_is_that_of_the_inputs(task):
  def of(number, batch_size):
    batches = examples.first(task, 'validation', number, batch_size)
    return examples.fingerprint(batches)

  assert of(5, 2) == of(5, 5) == of(5, 6)
  assert of(5, 5) != of(4, 5)
  (batch,) = examples.first(task, 'validation', 6, 6)
  swapped = jax.tree.map(lambda x: x[::-1], batch)
  assert examples.fingerprint([batch]) != examples.fingerprint([swapped])


@pytest.mark.parametrize(
    'splits, given, expected, is_noted',
    [
        (('train', 'validation', 'test'), None, 'test', False),
        (('train', 'validation', 'test'), 'validation', 'validation', False),
        (('train', 'validation'), None, 'validation', True),
        (('train', 'validation'), 'validation', 'validation', False),
    ],
)
def test_what_chose_the_model_does_not_measure_it_if_there_is_else(
    capsys, splits, given, expected, is_noted
):
  task = tasks.in_memory(pairs=dict.fromkeys(splits, [('a', 'b')]))
  assert examples.final_split(task, given) == expected
  noted = capsys.readouterr().err
  assert ('has no split test' in noted) == is_noted
  assert ('--gin.tasks.in_memory.test=FILE' in noted) == is_noted
