"""Texts or tokens in, texts and tokens out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from distillspec_jax.sampling import sampler
from distillspec_jax.sampling import verification
from tests import tiny

TEXTS = ['two words', 'a longer one', '']
SAMPLED = {'temperature': 1.0, 'max_new_tokens': 6}


@pytest.fixture(name='target', scope='module')
def _target():
  model = tiny.model(tiny.BYTES, gain=2.0)
  return tiny.loaded(model, 'the target', 'bytes')


@pytest.fixture(name='draft', scope='module')
def _draft(target):
  return tiny.loaded(tiny.noisy(target.model, 0.3), 'the draft')


def test_texts_and_their_tokens_have_the_same_outputs(target):
  of_texts = generation.generate(target, TEXTS, **SAMPLED)
  rows = [[*(ord(letter) + 3 for letter in text), 1] for text in TEXTS]
  tokens = np.zeros((3, 16), np.int32)
  for row, values in zip(tokens, rows):
    row[: len(values)] = values
  of_tokens = generation.generate(target, tokens, **SAMPLED)
  np.testing.assert_array_equal(of_texts.tokens, of_tokens.tokens)
  for text, row, length in zip(
      of_texts.text, of_texts.tokens, of_texts.lengths
  ):
    assert text == target.vocabulary.decode([int(t) for t in row[:length]])
    assert not row[length:].any()


def test_an_input_draws_from_the_stream_of_its_number(target):
  together = generation.generate(target, TEXTS, seed=3, **SAMPLED)
  decoding = decoding_lib.Decoding().replace(**SAMPLED)
  prompt = types.Prompt(
      *batching.pad([generation.tokenize(target, text) for text in TEXTS])
  )
  order = np.array([2, 0, 1])
  permuted = types.Prompt(prompt.tokens[order], prompt.segments[order])
  sample = functools.partial(generation.sample, target, None, permuted)
  out = sample(order, decoding, 3)
  np.testing.assert_array_equal(out.tokens, together.tokens[order])
  np.testing.assert_array_equal(out.lengths, together.lengths[order])
  other = sample(order + 3, decoding, 3)
  assert (other.tokens != out.tokens).any(axis=1).all()


def test_without_a_vocabulary_there_is_no_text(target):
  silent = tiny.loaded(target.model, 'mute')
  out = generation.generate(silent, np.full((3, 16), 5), **SAMPLED)
  assert out.text == [] and out.tokens.shape == (3, 6)
  with pytest.raises(errors.UserError, match='mute has no vocabulary, so it'):
    generation.generate(silent, TEXTS)


def test_text_has_no_eos_in_it(target):
  tokens = np.array([100, 101, 1])
  assert generation.detokenize(target.vocabulary, tokens) == 'ab'


@pytest.mark.parametrize(
    'inputs, changes, message',
    [
        ('one', {}, "one string, 'one'; give a list"),
        ([], {}, 'inputs is empty'),
        (np.zeros(3, np.int32), {}, r'inputs has shape \(3,\); give int32'),
        (np.zeros((0, 3), np.int32), {}, r'has shape \(0, 3\)'),
        (None, {}, 'inputs is None; give a list of strings'),
        ({'a'}, {}, "inputs is {'a'}; give a list"),
        (['a', None], {}, 'Input 1 is None; give strings'),
        ([[5, 6], [7]], {}, r'Input 0 is \[5, 6\]; give strings, or one array'),
        (['a\ud800'], {}, 'Input 0 is not Unicode'),
        (np.ones((1, 3)), {}, 'inputs is of type float64; give tokens int32'),
        (
            np.array([[5, 6], [384, 0]]),
            {},
            r'Input 1 has token 384 at 0; tokens must lie in \[0, 384\)',
        ),
        (np.array([[5, -100]]), {}, 'Input 0 has token -100 at 1'),
        (np.array([[2**32 + 5]]), {}, 'Input 0 has token 4294967301 at 0'),
        (np.zeros((2, 0), np.int32), {}, r'has shape \(2, 0\).* S at least 1'),
        (np.array([[5, 1], [0, 0]]), {}, 'Input 1 is nothing but padding'),
        (TEXTS, {'draft': np.ones(2)}, 'draft is array.*; give a model'),
        (TEXTS, {'prefix': '\ud800'}, 'prefix of input 0 is not Unicode'),
        (TEXTS, {'prefix': 5}, 'prefix is 5; give a text, or one text or list'),
        (TEXTS, {'log_probs': np.ones(2)}, 'log_probs is array.*; it must be'),
        (TEXTS, {'draft': 'folder'}, "draft is 'folder'; give a model, as ds"),
        (TEXTS, {'decoding': 'greedy'}, "decoding is 'greedy'; give a Decod"),
        (TEXTS, {'top_k': 2.5}, 'top_k is 2.5; it must be a whole number'),
        (TEXTS, {'top_p': 0}, 'top_p is 0; it must lie in'),
        (TEXTS, {'top_p': 1.1}, 'top_p is 1.1; it must lie in'),
        (TEXTS, {'paths': 10**9}, 'paths is 10+; it must be at most 1024'),
        (TEXTS, {'batch_size': 2.0}, 'batch_size is 2.0; it must be a whole'),
        (TEXTS, {'batch_size': None}, 'batch_size is None; it must be a whole'),
        (
            TEXTS,
            {'max_new_tokens': 1e12},
            'max_new_tokens is 1.*; give a whole',
        ),
        (
            TEXTS,
            {'max_new_tokens': 10**12},
            'is 10+; it must be at most 131072',
        ),
        (TEXTS, {'log_probs': 'no'}, "log_probs is 'no'; it must be one of"),
        (TEXTS, {'eos_ids': (2**31,)}, 'eos_ids has 2147483648; token ids'),
        (TEXTS, {'seed': np.uint64(2**63)}, 'seed is 9223372036854775807'),
        (
            TEXTS,
            {'seed': 10**5000},
            'seed is an integer of thousands of digits',
        ),
        (TEXTS, {'seed': -1}, r'seed is -1; it must lie in \[0, 2\*\*32\)'),
        (TEXTS, {'seed': 2**32}, 'seed is 4294967296'),
        (TEXTS, {'temperature': -1.0}, 'temperature is -1.0'),
        (TEXTS, {'seed': [1, 2]}, 'seed has 2 values for 3 inputs'),
        (TEXTS, {'eos_ids': 1}, r'eos_ids is 1; give tokens, .* or \(\) for'),
        (TEXTS, {'eos_ids': (1, -2)}, 'eos_ids has -2; token ids are whole'),
        (TEXTS, {'eos_ids': (1.5,)}, 'eos_ids has 1.5; token ids are whole'),
        (
            TEXTS,
            {'eos_ids': (384,)},
            'eos_ids has 384, but the target has 384 t',
        ),
        (TEXTS, {'batch_size': 0}, 'batch_size is 0'),
        (TEXTS, {'verifier': 'magic'}, "no verifier called 'magic'"),
        (TEXTS, {'adaptive': 'luck'}, "no adaptive draft length called 'luck"),
    ],
)
def test_bad_arguments_are_refused_by_name(target, inputs, changes, message):
  with pytest.raises(errors.UserError, match=message):
    generation.generate(target, inputs, **changes)


def test_a_target_is_a_loaded_model():
  with pytest.raises(errors.UserError, match="target is 'x'; give a model, as"):
    generation.generate('x', TEXTS)


def test_inputs_have_tokens_of_both_models(target, draft):
  small = tiny.loaded(tiny.model(300), 'small')
  tokens = np.array([[5, 299], [6, 300]])
  with pytest.raises(errors.UserError, match=r'token 300 at 1; .* \[0, 300\)'):
    generation.generate(target, tokens, draft=small, max_new_tokens=8)
  with pytest.raises(errors.UserError, match=r'is \[300\]; .* \[0, 300\)'):
    generation.generate(
        target, TEXTS, draft=small, max_new_tokens=8, prefix=[[300], [], []]
    )


@pytest.mark.parametrize('temperature', [1e-9, 1e-37, 1e-45, 1e-300])
def test_tiny_temperatures_are_greedy(target, temperature):
  greedy = generation.generate(target, TEXTS, max_new_tokens=6)
  for given in (temperature, [temperature] * 3):
    out = generation.generate(
        target, TEXTS, temperature=given, max_new_tokens=6
    )
    np.testing.assert_array_equal(out.tokens, greedy.tokens)


@pytest.mark.parametrize('temperature', [1e7, 1e39, float('inf'), 10**400])
def test_huge_temperatures_are_refused(target, temperature):
  for given in (temperature, [temperature] * 3):
    with pytest.raises(errors.UserError, match='temperature is .*; (it|give)'):
      generation.generate(target, TEXTS, temperature=given)


# Settings of single sequences.

ROWS = ['one', 'two words', 'a longer line', '', 'x', 'y z']
ROW_SETTINGS = {
    'temperature': [0.0, 1.0, 1.0, 0.0, 1.0, 1.0],
    'max_new_tokens': [6, 6, 3, 6, 6, 6],
    'min_new_tokens': [0, 6, 0, 4, 2, 0],
    'seed': [3, 3, 0, 7, 2**32 - 1, 1],
}


@pytest.mark.parametrize('with_draft', [False, True])
def test_without_an_eos_no_sequence_ends_early(target, draft, with_draft):
  generate = functools.partial(
      generation.generate,
      target,
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
def test_sequences_of_several_settings_are_as_one_by_one(
    target, draft, with_draft
):
  # Also: texts of several lengths are batched, and returned in order.
  draft = draft if with_draft else None
  together = generation.generate(
      target, ROWS, draft=draft, block_length=3, batch_size=2, **ROW_SETTINGS
  )
  for row, text in enumerate(ROWS):
    own = {name: [values[row]] for name, values in ROW_SETTINGS.items()}
    own['seed'] = own['seed'][0]
    alone = generation.generate(
        target, [text], draft=draft, block_length=3, **own
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
def test_a_number_for_all_is_that_number_for_each(target, temperature):
  one = generation.generate(
      target, TEXTS, temperature=temperature, max_new_tokens=6, seed=3
  )
  each = generation.generate(
      target, TEXTS, temperature=[temperature] * 3, max_new_tokens=[6] * 3,
      min_new_tokens=[0] * 3, seed=3,
  )  # fmt: skip
  np.testing.assert_array_equal(one.tokens, each.tokens)


def spelled(out):
  """The bytes of each row, whether they are characters or halves of them."""
  return [
      bytes(t - 3 for t in row[:length].tolist() if 3 <= t < 259)
      for row, length in zip(out.tokens, out.lengths)
  ]


def most_common(rows, size):
  """Letters that several rows have, and not as their last."""
  words = [row[i : i + size] for row in rows for i in range(1, len(row) - size)]
  words = sorted({word for word in words if word.isascii()})
  return max(words, key=lambda word: sum(word in row for row in rows)).decode()


@pytest.mark.parametrize('with_draft', [False, True])
def test_outputs_end_before_stop_strings(target, draft, with_draft):
  rows = [f'{word} {i}' for i in range(4) for word in ('one', 'two', 'x', 'y')]
  settings = {'temperature': 1.0, 'max_new_tokens': 12}
  settings['draft'] = draft if with_draft else None
  free = generation.generate(target, rows, **settings)
  texts = spelled(free)
  stop = [most_common(texts, 2), most_common(texts, 1)]
  out = generation.generate(target, rows, stop=stop, **settings)
  ended = 0
  for row, (text, stopped) in enumerate(zip(texts, spelled(out))):
    assert text.startswith(stopped)
    length = out.lengths[row]
    np.testing.assert_array_equal(
        out.tokens[row, :length], free.tokens[row, :length]
    )
    ends = [text.find(s.encode()) + len(s) for s in stop if s.encode() in text]
    if ends:
      assert len(stopped) == min(ends)
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


def test_a_prefix_is_read_and_is_in_the_text(target, draft):
  prefix = ['ab', '', 'é!']
  tokens = [[100, 101], [], [198, 172, 36]]
  settings = {'temperature': [0.0, 1.0, 1.0], 'max_new_tokens': 6}
  one = generation.generate(target, TEXTS, prefix=prefix, **settings)
  two = generation.generate(target, TEXTS, prefix=tokens, **settings)
  np.testing.assert_array_equal(one.tokens, two.tokens)
  assert one.text == two.text
  for row, (text, start) in enumerate(zip(one.text, prefix)):
    own = one.tokens[row, : one.lengths[row]].tolist()
    assert text.startswith(start)
    assert text == target.vocabulary.decode(tokens[row] + own)
  # A sequence without one is as in a batch without any.
  plain = generation.generate(target, TEXTS, **settings)
  np.testing.assert_array_equal(one.tokens[1], plain.tokens[1])
  assert (one.tokens[0] != plain.tokens[0]).any()
  greedy = {'max_new_tokens': 6, 'prefix': prefix}
  alone = generation.generate(target, TEXTS, **greedy)
  with_draft = generation.generate(target, TEXTS, draft=draft, **greedy)
  np.testing.assert_array_equal(alone.tokens, with_draft.tokens)
  assert alone.text == with_draft.text


def test_a_stop_string_in_a_prefix_does_not_count(target):
  plain = generation.generate(target, TEXTS, prefix='ab', max_new_tokens=6)
  out = generation.generate(
      target, TEXTS, prefix='ab', stop='ab', max_new_tokens=6
  )
  for row in range(3):
    assert 'ab' not in plain.text[row][2:]
  assert out.text == plain.text


@pytest.mark.parametrize('who', ['target', 'draft'])
def test_logits_that_are_not_finite_are_named(target, draft, who):
  pair = {'target': target, 'draft': draft}
  params = pair[who].model.params
  table = params['token_embedder']['embedding']
  table = table.at[3 + ord('q')].set(jnp.nan)
  params = {**params, 'token_embedder': {'embedding': table}}
  model = pair[who].model.replace(params=params)
  pair[who] = dataclasses.replace(pair[who], model=model)
  with pytest.raises(
      errors.Failed,
      match=f'logits of the {who} are not finite for input 1 after 0 new token',
  ):
    generation.generate(
        pair['target'], ['ab', 'aq', 'c'], draft=pair['draft'],
        max_new_tokens=6,
    )  # fmt: skip
  if who == 'target':
    with pytest.raises(
        errors.Failed, match=r'for input 0 .* \(and for 1 more inputs\)'
    ):
      generation.generate(pair[who], ['q', 'a', 'qq'], max_new_tokens=6)


def test_log_probabilities_are_returned_where_they_are_asked_for(target):
  assert generation.generate(target, TEXTS, **SAMPLED).log_probs is None
  out = generation.generate(target, TEXTS, log_probs=True, **SAMPLED)
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


# The decoding as one value.

FLAT = {
    'max_new_tokens': 6,
    'temperature': 0.7,
    'top_k': 50,
    'top_p': 0.95,
    'block_length': 3,
    'paths': 2,
    'adaptive': 'confidence(0.1)',
    'eos_ids': (1, 7),
    'log_probs': True,
}
ONE_PATH = {**FLAT, 'paths': 1, 'verifier': 'lenient(linear, 0.5)'}
ONE_CALL = {**FLAT, 'paths': 1, 'parallel': True}


def as_decoding(flat):
  settings = {'verifier': 'token', **flat}
  return decoding_lib.Decoding().replace(
      length=settings.pop('block_length'),
      adaptive=adaptive_length.parse(settings.pop('adaptive')),
      verifier=verification.parse(settings.pop('verifier')),
      **settings,
  )


@pytest.mark.parametrize('flat', [FLAT, ONE_PATH, ONE_CALL])
def test_a_decoding_is_what_its_flat_arguments_are(
    target, draft, flat, monkeypatch
):
  seen = []
  generate = sampler.generate

  def spy(*args, **kwargs):
    seen.append(args[3])
    return generate(*args, **kwargs)

  monkeypatch.setattr(sampler, 'generate', spy)
  decoding = as_decoding(flat)
  draft = tiny.loaded(
      tiny.changed(draft.model, draft.model.params, mask_token=2), draft.name
  )
  flat, one = (
      generation.generate(target, TEXTS, draft=draft, seed=5, **settings)
      for settings in (flat, {'decoding': decoding})
  )
  assert seen == [decoding, decoding]
  assert flat.text == one.text
  jax.tree.map(
      np.testing.assert_array_equal,
      [flat.tokens, flat.log_probs, flat.origins, flat.statistics],
      [one.tokens, one.log_probs, one.origins, one.statistics],
  )
  assert one.statistics.accepted.sum() > 0


def test_settings_of_single_sequences_stand_beside_a_decoding(target):
  decoding = decoding_lib.Decoding(max_new_tokens=6)
  flat, one = (
      generation.generate(
          target, TEXTS, min_new_tokens=[6, 0, 3], prefix='ab', seed=[1, 2, 3],
          **settings,
      )
      for settings in ({'max_new_tokens': 6}, {'decoding': decoding})
  )  # fmt: skip
  np.testing.assert_array_equal(flat.tokens, one.tokens)
  with pytest.raises(errors.UserError, match='min_new_tokens is 7; it must'):
    generation.generate(target, TEXTS, decoding=decoding, min_new_tokens=7)


@pytest.mark.parametrize('name', ONE_PATH | ONE_CALL)
def test_a_decoding_and_its_flat_arguments_are_not_both_given(target, name):
  value = {'paths': 2}.get(name, (ONE_PATH | ONE_CALL)[name])
  with pytest.raises(
      errors.UserError,
      match=f'^{name} and decoding are both given; set it in decoding',
  ):
    generation.generate(
        target, TEXTS, decoding=decoding_lib.Decoding(), **{name: value}
    )


def test_all_that_are_given_twice_are_named(target):
  with pytest.raises(
      errors.UserError,
      match='temperature, paths and decoding are both given; set them in dec',
  ):
    generation.generate(
        target, TEXTS, decoding=decoding_lib.Decoding(), paths=2,
        temperature=np.array([0.0, 1.0, 0.0]),
    )  # fmt: skip


def test_a_pair_is_checked_before_anything_runs(target, draft):
  with pytest.raises(errors.UserError, match='block_length is 9; it must lie'):
    generation.generate(
        target, TEXTS, draft=draft, block_length=9, max_new_tokens=8
    )
  with pytest.raises(errors.UserError, match='but the draft has none'):
    generation.generate(target, TEXTS, draft=draft, parallel=True)
  other = tiny.loaded(tiny.model(250), 'the other')
  with pytest.raises(
      errors.UserError,
      match='the draft the other has 250, and their vocabulary has 259',
  ):
    generation.generate(target, TEXTS, draft=other)
