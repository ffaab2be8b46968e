"""The automaton of stop strings against a search in the text itself."""

import random

import jax
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.sampling import stopping

PIECES = [b'', b'a', b'b', b'c', b'ab', b'ba', b'aab', b'bcab', b' ', b' a']
STRINGS = [
    ['a'],
    ['ab'],
    ['aab', 'aba'],  # they overlap
    ['abcab', 'bc'],  # one within the other
    ['aaaa'],  # overlaps itself
    ['abab', 'babb', 'cc'],
    ['ab', 'abc', 'b'],  # one begins as the other, and one ends as the other
    ['a', 'a'],
    [' a', 'b a'],
    ['bcabcab'],  # longer than every piece
]


def walk(automaton, rows, state=None):
  """As `Automaton.read`, which would be compiled for each table."""
  table = np.asarray(automaton.table)
  if state is None:
    state = np.broadcast_to(np.asarray(automaton.start), len(rows))
  states = []
  for column in rows.T:
    state = table[column, state]
    states.append(state)
  return np.stack(states, axis=1)


def test_tokens_are_read_on_the_device():
  automaton = stopping.automaton(['ab', 'cc'], PIECES)
  rows = random_rows(len(PIECES)).astype(np.int32)
  start = stopping.start(automaton, None, len(rows))
  states = jax.jit(lambda automaton, *args: automaton.read(*args))(
      automaton, start, rows
  )
  np.testing.assert_array_equal(states, walk(automaton, rows))


def read(automaton, rows, state=None):
  """After how many tokens of each row a string is complete, or None.

  Args:
    automaton: of the strings.
    rows: int[B, N].
    state: before the first token; default: the start.
  """
  rows = np.asarray(rows, np.int32)
  states = walk(automaton, rows, state)
  complete = np.asarray(automaton.is_complete(states))
  return [int(row.argmax()) + 1 if row.any() else None for row in complete]


def searched(strings, surfaces, rows):
  """The same by looking into the bytes that the tokens spell."""
  found = []
  for row in rows:
    spelt, after = b'', None
    for number, token in enumerate(row, start=1):
      spelt += surfaces[token]
      if any(string.encode() in spelt for string in strings):
        after = number
        break
    found.append(after)
  return found


def random_rows(size, rows=300, length=12, seed=0):
  return np.random.default_rng(seed).integers(0, size, (rows, length))


@pytest.mark.parametrize(
    'strings', STRINGS, ids=lambda strings: '|'.join(strings)
)
def test_strings_are_found_with_the_token_that_completes_them(strings):
  rows = random_rows(len(PIECES))
  expected = searched(strings, PIECES, rows)
  assert len(set(expected)) > 3  # at several places
  assert read(stopping.automaton(strings, PIECES), rows) == expected


@pytest.mark.parametrize('seed', range(8))
def test_any_strings_over_any_pieces(seed):
  draw = random.Random(seed)

  def word(least, most):
    return ''.join(draw.choices('ab', k=draw.randint(least, most)))

  pieces = [b'a', b'b', *(word(0, 5).encode() for _ in range(6))]
  strings = [word(1, 6) for _ in range(draw.randint(1, 5))]
  rows = random_rows(len(pieces), seed=seed, length=8)
  automaton = stopping.automaton(strings, pieces)
  assert read(automaton, rows) == searched(strings, pieces, rows)


def test_characters_of_several_bytes_may_be_cut_anywhere():
  # Every byte is a piece; some characters are pieces, and some halves are.
  text = 'é✓😀è'
  pieces = [bytes([byte]) for byte in sorted(set(text.encode()))]
  pieces += ['é'.encode(), '✓'.encode(), '😀'.encode()[:2], 'x✓'.encode()]
  pieces += ['😀'.encode()[2:] + 'é'.encode()[:1]]
  strings = ['é', '✓😀', 'è']
  rows = random_rows(len(pieces), rows=2_000, length=16)
  expected = searched(strings, pieces, rows)
  assert len(set(expected)) > 3
  assert read(stopping.automaton(strings, pieces), rows) == expected


def test_the_blank_that_begins_a_text_is_not_shown():
  later = [b'', b' ', b' a', b'a', b' b']
  first = [None, None, b'a', b'a', b'b']  # as in SentencePiece
  automaton = stopping.automaton([' a'], later, first)
  rows = [[2, 3, 3], [1, 2, 2], [0, 2, 2], [3, 2, 3], [4, 1, 3], [1, 1, 2]]
  assert read(automaton, rows) == [None, 3, 3, 2, 3, None]
  # After other text, it is.
  has_begun = np.array([True, True, False, True, True, False])
  state = np.where(has_begun, 0, automaton.start)
  assert read(automaton, rows, state) == [1, 2, 3, 2, 3, None]
  # Where blanks are shown from the start on.
  assert read(stopping.automaton([' a'], later), rows) == [1, 2, 2, 2, 3, 3]


def test_a_first_piece_may_complete_a_string_by_itself():
  automaton = stopping.automaton(['a'], [b' b', b' xay'], [b'b', b'xay'])
  assert read(automaton, [[1, 0], [0, 1], [0, 0]]) == [1, 2, None]


def test_what_follows_a_complete_string_changes_nothing():
  automaton = stopping.automaton(['ab', 'c'], PIECES)
  rows = np.array([[4, *row] for row in random_rows(len(PIECES), 20)])
  states = walk(automaton, rows)
  assert automaton.is_complete(states).all()


@pytest.mark.parametrize(
    'strings, message',
    [
        (['a', ''], 'A stop string is empty'),
        (['xyz'], "stop string 'xyz' can never occur"),
        (['ab', 'c d'], "stop string 'c d' can never occur"),
        (['é'], "stop string 'é' can never occur"),
        (['a\udcff'], r"stop string 'a\\udcff' is not Unicode"),
        (['ab' * 20_000], 'stop strings have 40000 bytes together; the max'),
    ],
)
def test_what_cannot_occur_is_refused_by_name(strings, message):
  with pytest.raises(errors.UserError, match=message):
    stopping.automaton(strings, PIECES[:9])


def test_a_string_that_only_the_first_token_spells_can_occur():
  automaton = stopping.automaton(['x'], [b' y'], [b'x'])
  assert read(automaton, [[0]]) == [1]


@pytest.mark.parametrize(
    'text, strings, start, expected',
    [
        ('one two', [' t'], 0, 'one'),
        ('one two', ['two', 'ne'], 0, 'o'),
        ('one two', ['x'], 0, 'one two'),
        ('one two', [], 0, 'one two'),
        ('aXbX', ['X'], 2, 'aXb'),
        ('X', ['X'], 0, ''),
    ],
)
def test_text_is_cut_before_the_first_string(text, strings, start, expected):
  assert stopping.cut(text, strings, start) == expected


def test_states_begin_where_the_text_does():
  automaton = stopping.automaton(['ab'], PIECES)
  assert stopping.start(None, None, 3) is None
  assert stopping.start(None, np.array([0, 1, 2]), 3) is None
  start = int(automaton.start)
  np.testing.assert_array_equal(stopping.start(automaton, None, 3), [start] * 3)
  state = np.array([0, start, 0])
  assert stopping.start(automaton, state, 3) is state
