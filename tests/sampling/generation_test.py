"""Texts or tokens in, texts and tokens out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from tests import tiny

TEXTS = ['two words', 'a longer one', '']
SAMPLED = {'temperature': 1.0, 'max_new_tokens': 6}


@pytest.fixture(name='model', scope='module')
def _model():
  model = tiny.model(tiny.BYTES, gain=2.0)
  return tiny.loaded(model, vocabulary='bytes')


def test_texts_and_their_tokens_have_the_same_answers(model):
  of_texts = generation.generate(model, TEXTS, **SAMPLED)
  rows = [[*(ord(letter) + 3 for letter in text), 1] for text in TEXTS]
  tokens = np.zeros((3, 16), np.int32)
  for row, values in zip(tokens, rows):
    row[: len(values)] = values
  of_tokens = generation.generate(model, tokens, **SAMPLED)
  np.testing.assert_array_equal(of_texts.tokens, of_tokens.tokens)
  for text, row, length in zip(
      of_texts.text, of_texts.tokens, of_texts.lengths
  ):
    assert text == model.vocabulary.decode([int(t) for t in row[:length]])
    assert not row[length:].any()


def test_a_row_draws_from_the_stream_of_its_number(model):
  whole = generation.generate(model, TEXTS, seed=3, **SAMPLED)
  decoding = decoding_lib.Decoding(**SAMPLED)
  tokens, segments = batching.pad(
      [generation.tokenize(model, text) for text in TEXTS]
  )
  order = np.array([2, 0, 1])
  out = generation.sample(
      model, None, tokens[order], segments[order], order, decoding, 3
  )
  np.testing.assert_array_equal(out.tokens, whole.tokens[order])
  np.testing.assert_array_equal(out.lengths, whole.lengths[order])
  other = generation.sample(
      model, None, tokens[order], segments[order], order + 3, decoding, 3
  )
  assert (other.tokens != out.tokens).any(axis=1).all()


def test_without_a_vocabulary_there_is_no_text(model):
  silent = loading.Model(model.transformer, model.params)
  out = generation.generate(silent, np.full((3, 16), 5), **SAMPLED)
  assert out.text == [] and out.tokens.shape == (3, 6)
  with pytest.raises(errors.UserError, match='model has no vocabulary'):
    generation.generate(silent, TEXTS)


def test_text_has_no_end_in_it(model):
  tokens = np.array([100, 101, 1])
  assert generation.detokenize(model.vocabulary, tokens) == 'ab'


@pytest.mark.parametrize(
    'inputs, changes, message',
    [
        ('one', {}, "one string, 'one'; give a list"),
        ([], {}, 'inputs is empty'),
        (np.zeros(3, np.int32), {}, r'inputs has shape \(3,\); give int32'),
        (np.zeros((0, 3), np.int32), {}, r'has shape \(0, 3\)'),
        (TEXTS, {'seed': -1}, r'seed is -1; it must lie in \[0, 2\*\*32\)'),
        (TEXTS, {'seed': 2**32}, 'seed is 4294967296'),
        (TEXTS, {'temperature': -1.0}, 'temperature is -1.0'),
        (TEXTS, {'seed': [1, 2]}, 'seed has 2 values for 3 inputs'),
        (TEXTS, {'eos_ids': 1}, r'eos_ids is 1; give tokens, .* or \(\) for'),
        (TEXTS, {'eos_ids': (1, -2)}, 'eos_ids has -2; tokens are numbers'),
        (TEXTS, {'eos_ids': (1.5,)}, 'eos_ids has 1.5; tokens are numbers'),
        (TEXTS, {'eos_ids': (384,)}, 'eos_ids has 384, but .* 384 tokens'),
        (TEXTS, {'batch_size': 0}, 'batch_size is 0'),
    ],
)
def test_what_does_not_fit_is_named(model, inputs, changes, message):
  with pytest.raises(errors.UserError, match=message):
    generation.generate(model, inputs, **changes)


# Settings of rows.

ROWS = ['one', 'two words', 'a much longer line of words', '', 'x', 'y z']
ROW_SETTINGS = {
    'temperature': [0.0, 1.0, 1.0, 0.0, 1.0, 1.0],
    'max_new_tokens': [6, 6, 3, 6, 6, 6],
    'min_new_tokens': [0, 6, 0, 4, 2, 0],
    'seed': [3, 3, 0, 7, 2**32 - 1, 1],
}


@pytest.fixture(name='draft', scope='module')
def _draft(model):
  params = tiny.with_noise(model.params, 0.3)
  return loading.Model(model.transformer, params, None, 'the draft')


@pytest.mark.parametrize('with_draft', [False, True])
def test_without_an_eos_no_row_ends_early(model, draft, with_draft):
  generate = functools.partial(
      generation.generate,
      model,
      TEXTS,
      draft=draft if with_draft else None,
      block_length=3,
      max_new_tokens=6,
  )
  free = generate(eos_ids=())
  assert (free.lengths == 6).all()
  ended = generate(eos_ids=(int(free.tokens[0, 2]),))
  assert ended.lengths[0] <= 3


@pytest.mark.parametrize('with_draft', [False, True])
def test_rows_of_several_settings_are_as_one_by_one(model, draft, with_draft):
  # Also: texts of several lengths are batched, and come back in order.
  draft = draft if with_draft else None
  together = generation.generate(
      model, ROWS, draft=draft, block_length=3, batch_size=2, **ROW_SETTINGS
  )
  for row, text in enumerate(ROWS):
    own = {name: [values[row]] for name, values in ROW_SETTINGS.items()}
    own['seed'] = own['seed'][0]
    alone = generation.generate(
        model, [text], draft=draft, block_length=3, **own
    )
    length = alone.lengths[0]
    assert together.text[row] == alone.text[0]
    assert together.lengths[row] == length
    np.testing.assert_array_equal(
        together.tokens[row, :length], alone.tokens[0, :length]
    )
    assert not together.tokens[row, length:].any()
    jax.tree.map(
        lambda one, two, row=row: np.testing.assert_array_equal(
            one[row], two[0]
        ),
        together.statistics,
        alone.statistics,
    )
  np.testing.assert_array_less(
      np.array(ROW_SETTINGS['min_new_tokens']) - 1, together.lengths
  )


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_number_for_all_is_that_number_for_each(model, temperature):
  one = generation.generate(
      model, TEXTS, temperature=temperature, max_new_tokens=6, seed=3
  )
  each = generation.generate(
      model, TEXTS, temperature=[temperature] * 3, max_new_tokens=[6] * 3,
      min_new_tokens=[0] * 3, seed=3,
  )  # fmt: skip
  np.testing.assert_array_equal(one.tokens, each.tokens)


def spelt(out):
  """The bytes of each row, whether they are characters or halves of them."""
  return [
      bytes(t - 3 for t in row[:length].tolist() if 3 <= t < 259)
      for row, length in zip(out.tokens, out.lengths)
  ]


def most_common(rows, size):
  """Letters that several rows say, and not as their last."""
  words = [row[i : i + size] for row in rows for i in range(1, len(row) - size)]
  words = sorted({word for word in words if word.isascii()})
  return max(words, key=lambda word: sum(word in row for row in rows)).decode()


@pytest.mark.parametrize('with_draft', [False, True])
def test_answers_end_before_stop_strings(model, draft, with_draft):
  rows = [f'{word} {i}' for i in range(4) for word in ('one', 'two', 'x', 'y')]
  settings = {'temperature': 1.0, 'max_new_tokens': 12}
  settings['draft'] = draft if with_draft else None
  free = generation.generate(model, rows, **settings)
  texts = spelt(free)
  stop = [most_common(texts, 2), most_common(texts, 1)]
  out = generation.generate(model, rows, stop=stop, **settings)
  ended = 0
  for row, (text, whole) in enumerate(zip(texts, spelt(out))):
    assert text.startswith(whole)
    length = out.lengths[row]
    np.testing.assert_array_equal(
        out.tokens[row, :length], free.tokens[row, :length]
    )
    places = [
        text.find(s.encode()) + len(s) for s in stop if s.encode() in text
    ]
    if places:
      assert len(whole) == min(places)
      ended += length < free.lengths[row]
    else:
      assert length == free.lengths[row]
    before = free.text[row]
    for string in stop:
      before = before.split(string)[0]
    assert out.text[row] == before
    assert out.statistics.emitted[row] == length
    assert (out.origins[row] != 0).sum() == length
  assert ended > 2


def test_a_prefix_is_read_and_is_in_the_text(model, draft):
  prefix = ['ab', '', 'é!']
  tokens = [[100, 101], [], [198, 172, 36]]
  settings = {'temperature': [0.0, 1.0, 1.0], 'max_new_tokens': 6}
  one = generation.generate(model, TEXTS, prefix=prefix, **settings)
  two = generation.generate(model, TEXTS, prefix=tokens, **settings)
  np.testing.assert_array_equal(one.tokens, two.tokens)
  assert one.text == two.text
  for row, (text, start) in enumerate(zip(one.text, prefix)):
    own = one.tokens[row, : one.lengths[row]].tolist()
    assert text.startswith(start)
    assert text == model.vocabulary.decode(tokens[row] + own)
  # A row without one is as in a batch without any.
  plain = generation.generate(model, TEXTS, **settings)
  np.testing.assert_array_equal(one.tokens[1], plain.tokens[1])
  assert (one.tokens[0] != plain.tokens[0]).any()
  greedy = {'max_new_tokens': 6, 'prefix': prefix}
  alone = generation.generate(model, TEXTS, **greedy)
  with_draft = generation.generate(model, TEXTS, draft=draft, **greedy)
  np.testing.assert_array_equal(alone.tokens, with_draft.tokens)
  assert alone.text == with_draft.text


def test_a_stop_string_in_a_prefix_does_not_count(model):
  plain = generation.generate(model, TEXTS, prefix='ab', max_new_tokens=6)
  out = generation.generate(
      model, TEXTS, prefix='ab', stop='ab', max_new_tokens=6
  )
  for row in range(3):
    assert 'ab' not in plain.text[row][2:]
  assert out.text == plain.text


@pytest.mark.parametrize('who', ['target', 'draft'])
def test_logits_that_are_no_numbers_are_named(model, draft, who):
  table = model.params['token_embedder']['embedding']
  broken = {
      **(model.params if who == 'target' else draft.params),
      'token_embedder': {'embedding': table.at[3 + ord('q')].set(jnp.nan)},
  }
  pair = {'target': model, 'draft': draft}
  name = {'target': 'model', 'draft': 'the draft'}[who]
  spoilt = loading.Model(model.transformer, broken, pair[who].vocabulary, name)
  pair[who] = spoilt
  with pytest.raises(
      errors.Failed,
      match=f'The logits of {name} are not finite in row 1 after 0 new tokens',
  ):
    generation.generate(
        pair['target'], ['ab', 'aq', 'c'], draft=pair['draft'],
        max_new_tokens=6,
    )  # fmt: skip
  if who == 'target':
    with pytest.raises(errors.Failed, match=r'row 0 .* \(and in 1 more rows\)'):
      generation.generate(spoilt, ['q', 'a', 'qq'], max_new_tokens=6)


def test_log_probabilities_are_given_where_they_are_wanted(model):
  assert generation.generate(model, TEXTS, **SAMPLED).log_probs is None
  out = generation.generate(model, TEXTS, log_probs=True, **SAMPLED)
  real = np.arange(6)[None] < out.lengths[:, None]
  assert out.log_probs.shape == (3, 6) and out.log_probs.dtype == np.float32
  assert (out.log_probs[real] < 0.0).all() and not out.log_probs[~real].any()


def test_seeds_beyond_the_limits_share_their_streams():
  # Why they are refused.
  bits = {
      seed: int(jax.random.bits(jax.random.key(seed)))
      for seed in (0, 2**32 - 1, 2**32, -1)
  }
  assert bits[2**32] == bits[0] != bits[-1] == bits[2**32 - 1]


@pytest.mark.parametrize(
    'length, width', [(0, 0), (1, 8), (8, 8), (9, 16), (16, 16), (17, 32)]
)
def test_widths_are_powers_of_two(length, width):
  assert batching.width(length) == width


def test_padding_is_marked():
  tokens, segments = batching.pad([[5, 6], [], [7]], 3)
  np.testing.assert_array_equal(tokens, [[5, 6, 0], [0, 0, 0], [7, 0, 0]])
  np.testing.assert_array_equal(segments, tokens != 0)
  assert jnp.asarray(tokens).dtype == jnp.int32
  assert batching.pad([[1] * 9])[0].shape == (1, 16)
