"""What is requested for each sequence, and what is refused."""

import dataclasses

import numpy as np
import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.data import vocabularies
from distillspec_jax.data import vocabulary_kinds
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import requests
from tests import tiny

CONFIG = tiny.config(tiny.BYTES)
# No parameters: nothing is computed here.
MODEL = model_lib.Model(None, tiny.network(CONFIG))
READER = loading.Loaded(MODEL, vocabularies.load('bytes'), 'reader')
SILENT = loading.Loaded(MODEL, None, 'silent')


def check(target=READER, count=3, **settings):
  return requests.check(target, count, **{'max_new_tokens': 8, **settings})


@pytest.mark.parametrize(
    'settings, message',
    [
        (
            {'max_new_tokens': [4, 5]},
            'max_new_tokens has 2 values for 3 inputs',
        ),
        ({'max_new_tokens': []}, 'max_new_tokens has 0 values for 3 inputs'),
        ({'max_new_tokens': 0}, 'max_new_tokens is 0; it must be at least 1'),
        (
            {'max_new_tokens': [4, 0, 5]},
            'max_new_tokens is 0 for input 1; it must',
        ),
        (
            {'max_new_tokens': 2.5},
            'max_new_tokens is 2.5; give a .*number, or one',
        ),
        ({'max_new_tokens': True}, 'max_new_tokens is True; give a .*number'),
        ({'max_new_tokens': '4'}, "max_new_tokens is '4'; give a .*number"),
        (
            {'max_new_tokens': [[1, 2, 3]]},
            r'is \[\[1, 2, 3\]\]; give a .*number',
        ),
        (
            {'max_new_tokens': [1, [2], 3]},
            'max_new_tokens is .*; give a .*number',
        ),
        ({'max_new_tokens': None}, 'max_new_tokens is None; give a .*number'),
        (
            {'min_new_tokens': -1},
            r'min_new_tokens is -1; it must lie in \[0, m',
        ),
        ({'min_new_tokens': 9}, 'min_new_tokens is 9; it must lie in'),
        (
            {'min_new_tokens': 5, 'max_new_tokens': [8, 8, 4]},
            'min_new_tokens is 5 for input 2; it must lie in',
        ),
        ({'min_new_tokens': [0, 0, 9]}, 'min_new_tokens is 9 for input 2'),
        ({'temperature': [0.0, -1.0, 1.0]}, 'temperature is -1.0 for input 1'),
        ({'temperature': float('nan')}, 'temperature is nan; it must'),
        ({'temperature': [1.0] * 4}, 'temperature has 4 values for 3 inputs'),
        ({'temperature': 'warm'}, "temperature is 'warm'; give a .*number"),
        (
            {'seed': [0, 1, 2**32]},
            'seed is 4294967296 for input 2; it must lie',
        ),
        ({'seed': [0, -1, 0]}, 'seed is -1 for input 1'),
        ({'seed': 0.5}, 'seed is 0.5; give a .*number'),
        ({'prefix': ['a', 'b']}, 'prefix has 2 values for 3 inputs; give one'),
        (
            {'prefix': [[5], [384], []]},
            r'prefix of input 1 is \[384\]; its tokens',
        ),
        (
            {'prefix': [[5], [-1], []]},
            r'prefix of input 1 is \[-1\]; its tokens',
        ),
        (
            {'prefix': [[5], 'a', 7]},
            'prefix of input 2 is 7; give a text or tokens',
        ),
        ({'prefix': [[[5], [6, 7]], [], []]}, r'prefix of input 0 is \[\[5\]'),
        ({'prefix': [[5.5], [], []]}, r'prefix of input 0 is \[5.5\]'),
        ({'stop': ''}, 'A stop string is empty'),
        ({'stop': ['a', 3]}, 'A stop string is 3; give text'),
        ({'stop': None}, 'stop is None; give a text, or a list of texts'),
    ],
)
def test_bad_values_are_refused_by_name(settings, message):
  with pytest.raises(errors.UserError, match=message):
    check(**settings)


def test_text_needs_a_vocabulary():
  with pytest.raises(errors.UserError, match="silent has no .* string 'ab'"):
    check(SILENT, stop='ab')
  with pytest.raises(errors.UserError, match="cannot read the prefix 'ab'"):
    check(SILENT, prefix='ab')
  of_tokens = check(SILENT, prefix=[[5], [6, 7], []])
  assert of_tokens.prefix == [[5], [6, 7], []]
  assert of_tokens.stop is None and of_tokens.stop_state is None


def test_what_all_share_is_not_among_the_controls():
  requests = check(max_new_tokens=5, temperature=1, seed=3, stop='ab')
  controls = requests.controls([0, 2])
  assert controls == type(controls)()
  assert check(max_new_tokens=[3, 9, 4]).longest == 9
  assert check(max_new_tokens=5).longest == 5


@pytest.mark.parametrize('numbers', [[0], [1, 2], [2, 0, 2]])
def test_sequences_get_their_own(numbers):
  requests = check(
      max_new_tokens=[5, 6, 7],
      min_new_tokens=[0, 1, 2],
      temperature=[0.0, 0.5, 1.0],
      prefix=[[5], [6, 7], []],
      stop='ab',
  )
  controls = requests.controls(numbers)
  of = lambda values: np.asarray(values)[numbers]
  np.testing.assert_array_equal(controls.max_new_tokens, of([5, 6, 7]))
  np.testing.assert_array_equal(controls.min_new_tokens, of([0, 1, 2]))
  np.testing.assert_array_equal(controls.temperature, of([0.0, 0.5, 1.0]))
  tokens, segments, _ = controls.prefix
  np.testing.assert_array_equal(tokens[:, 0], of([5, 6, 0]))
  np.testing.assert_array_equal(segments.sum(1), of([1, 2, 0]))
  # Where the prefix has text, the text has begun.
  start = int(requests.stop.start)
  assert start > 0
  np.testing.assert_array_equal(controls.stop_state, of([0, 0, start]))


def test_a_number_for_all_is_one_for_each_where_it_must_be():
  controls = check(min_new_tokens=2).controls([4, 5])
  np.testing.assert_array_equal(controls.min_new_tokens, [2, 2])


def test_one_prefix_is_for_all():
  assert check(prefix='ab').prefix == [[100, 101]] * 3
  assert check(prefix=np.array([[5, 6]] * 3)).prefix == [[5, 6]] * 3


def test_a_vocabulary_is_spelt_once(monkeypatch):
  calls = []
  surfaces = vocabulary_kinds.surfaces

  def counted(vocabulary):
    calls.append(vocabulary)
    return surfaces(vocabulary)

  monkeypatch.setattr(vocabulary_kinds, 'surfaces', counted)
  reader = dataclasses.replace(READER, vocabulary=vocabularies.load('bytes'))
  one, again = check(reader, stop=['ab', 'c']), check(reader, stop=('ab', 'c'))
  assert one.stop is again.stop
  other = check(reader, stop='ab').stop
  assert other.table.shape != one.stop.table.shape
  assert calls == [reader.vocabulary]
  another = vocabularies.load('bytes')
  check(dataclasses.replace(READER, vocabulary=another), stop='ab')
  assert len(calls) == 2


def test_tokens_beyond_the_vocabulary_spell_nothing():
  table = check(stop='ab').stop.table
  assert table.shape[0] == CONFIG.vocab_size > READER.vocabulary.vocab_size
  np.testing.assert_array_equal(table[300], np.arange(table.shape[1]))
