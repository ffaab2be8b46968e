import itertools

import hypothesis
from hypothesis import strategies
import jax
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.data import batches
from distillspec_jax.data import tasks


def make_task(lengths, input_length=10, label_length=8):
  """Example i: `lengths[i]` characters, all the i-th letter."""
  pairs = [
      (chr(65 + i % 26) * n, chr(97 + i % 26) * n)
      for i, n in enumerate(lengths)
  ]
  return tasks.in_memory(
      pairs={'train': pairs},
      input_length=input_length,
      label_length=label_length,
      vocabulary='bytes',
  )


@pytest.fixture(scope='module')
def task():
  return make_task([1, 2, 3, 4, 5, 2, 1, 3, 6, 2, 1])


def take(count, task, batch_size=4, **changes):
  every = batches.batches(task, 'train', batch_size, **{'seed': 0, **changes})
  return list(itertools.islice(every, count))


def same(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def texts(task, some_batches):
  rows = [row for batch in some_batches for row in batch.labels]
  return [task.vocabulary.decode(row[row > 0].tolist()) for row in rows]


def test_every_example_comes_once_an_epoch(task):
  labels = texts(task, take(100, task, num_epochs=1))
  assert len(labels) == 12  # three batches of four; the last row is empty
  assert sorted(labels) == sorted(
      ['', *(label for _, label in task.texts('train'))]
  )


def test_a_row_is_one_example_padded(task):
  (batch,) = take(1, task, shuffle=False)
  assert batch.inputs.shape == (4, 10)
  assert batch.labels.shape == (4, 8)
  for i in range(4):
    assert batch.segments[i].sum() == i + 2  # i + 1 letters and EOS
    assert batch.labels[i, i + 1] == 1
    assert (batch.labels[i, i + 2 :] == 0).all()
  np.testing.assert_array_equal(batch.mask, batch.segments > 0)


def test_order_is_drawn_from_seed_and_epoch(task):
  assert same(take(6, task), take(6, task))
  assert not same(take(6, task), take(6, task, seed=1))
  epochs = texts(task, take(11, task))
  assert epochs[:11] != epochs[11:22]
  assert sorted(epochs[:11]) == sorted(epochs[11:22])


@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('start', [1, 3, 7])
def test_a_restart_continues(task, pack, start):
  whole = take(10, task, pack=pack)
  rest = take(10 - start, task, pack=pack, start=start)
  assert same(whole[start:], rest)


@pytest.mark.parametrize('rows', [[0, 1], [3], [2, 0]])
def test_hosts_share_the_global_batch(task, rows):
  whole, parts = take(3, task), take(3, task, rows=rows)
  for batch, part in zip(whole, parts):
    assert same(jax.tree.map(lambda x: x[rows], batch), part)


@hypothesis.given(
    strategies.lists(strategies.integers(1, 12), min_size=1, max_size=20)
)
@hypothesis.settings(max_examples=15)
def test_packing_loses_and_mixes_nothing(lengths):
  task = make_task(lengths)
  seen = []
  for batch in take(100, task, pack=True, num_epochs=1, batch_size=3):
    for row in range(3):
      for segment in range(1, batch.segments[row].max() + 1):
        label = batch.labels[row][batch.segments[row] == segment]
        source = batch.inputs[row][batch.input_segments[row] == segment]
        # Example k is segment k on both sides: 'AAA' with 'aaa'.
        text = task.vocabulary.decode(label.tolist())
        partner = task.vocabulary.decode(source.tolist())
        assert text[0].upper() == partner[0]
        seen.append(label.tolist())
  expected = [e.labels[:8].tolist() for e in task.examples('train')]
  assert sorted(seen) == sorted(expected)


def test_packing_needs_fewer_rows(task):
  plain = take(100, task, num_epochs=1, batch_size=1)
  packed = take(100, task, num_epochs=1, batch_size=1, pack=True)
  assert len(packed) < len(plain)


def test_a_batch_of_no_rows_is_refused(task):
  with pytest.raises(errors.UserError, match='batch_size is 0'):
    batches.batches(task, 'train', 0, seed=0)
