"""Each kind of vocabulary by itself.

The numbers in these tests are what transformers 5.23 gives for the same
tokenizers (T5Tokenizer, ByT5Tokenizer), but where a test says otherwise.
"""

import copy

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from distillspec_jax.data import vocabularies
from distillspec_jax.data import vocabulary_kinds
from tests.data import tiny_tokenizers

KINDS = ('t5', 'mt5', 'byt5', 'tokenizer_json')
SENTINEL = 'a <extra_id_0> the <extra_id_99>'
AWKWARD = [
    '',
    ' ',
    '  two  blanks\tand\ntabs \r\n',
    'emoji 😀👩‍👩‍👧 and e\u0301 combining',
    'x' * 300,
    'שלום עולם',
    'a\u200db\u202ec',
    '\x01\x02\x1b \x7f',
    'the literal </s>, <pad> and <unk>',
    'a <extra_id_0> b<extra_id_1>, <extra_id_777> <extra_id_',
    '▁ and \ufffd and \ufeff',
]
# T5's normalisation: NFKC, blanks of all kinds become one, controls are gone.
T5_LIKE = {
    '': ([], ''),
    'The draft is verified.': (
        [3, 40, 21, 13, 5, 3, 17, 19, 8, 17, 13, 23, 46],
        'The draft is verified.',
    ),
    '  two  blanks\tand\ntabs \r\n': (
        [3, 14, 30, 16, 3, 32, 22, 15, 18, 34, 19, 7, 18, 23, 3, 14, 15, 32]
        + [19],
        'two blanks and tabs',
    ),
    'caf\u00e9 😀': ([3, 24, 15, 27, 2, 3, 2], 'caf ⁇   ⁇ '),
    'a\u200db': ([7, 2, 32], 'a ⁇ b'),
    '\x01\x02a': ([7], 'a'),
    'ﬁ ½': ([12, 17, 3, 55, 2, 56], 'fi 1 ⁇ 2'),
    'שלום': ([3, 2], ' ⁇ '),
    'e\u0301t': ([3, 2, 14], ' ⁇ t'),
    't' * 40: ([3] + [14] * 40, 't' * 40),
    '<extra_id_1>': ([162], '<extra_id_1>'),
    SENTINEL: ([7, 163, 4, 64], SENTINEL),
}


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  found = {}

  def get(kind):
    if kind not in found:
      folder = tmp_path_factory.mktemp('folders') / kind
      found[kind] = vocabularies.load(getattr(tiny_tokenizers, kind)(folder))
    return found[kind]

  return get


@pytest.mark.parametrize('kind', ['t5', 'tokenizer_json'])
@pytest.mark.parametrize('text', T5_LIKE)
def test_t5_is_cut_as_by_transformers(loaded, kind, text):
  ids, back = T5_LIKE[text]
  if kind == 'tokenizer_json':  # tokenizers drops the blank before a sentinel
    back = back.replace(' <', '<')
  assert list(loaded(kind).encode(text)) == ids
  assert loaded(kind).decode(ids) == back


def test_mt5_has_its_own_sentinels_and_spells_the_unknown_in_bytes(loaded):
  mt5 = loaded('mt5')
  assert mt5.vocab_size == 420
  assert mt5.encode('<extra_id_1>') == [418]
  assert mt5.encode(SENTINEL) == [263, 419, 260, 320]
  assert mt5.decode([263, 419, 260, 320]) == SENTINEL
  assert mt5.encode('The draft is') == [259, 296, 277, 269, 261, 259, 273, 275]
  # transformers 5 leaves bytes out of its T5Tokenizer and gives [263, 2, 288].
  assert mt5.encode('a\u200db') == [263, 3 + 0xE2, 3 + 0x80, 3 + 0x8D, 288]
  assert mt5.decode(mt5.encode('שלום 😀')) == 'שלום 😀'


@pytest.mark.parametrize(
    'text, ids',
    [
        ('', []),
        ('a<extra_id_3>b', [100, 262, 101]),
        ('a <extra_id_3> b', [100, 35, 262, 35, 101]),
        ('é😀\n', [198, 172, 243, 162, 155, 131, 13]),
        (' <extra_id_124>\t<extra_id_0>', [35, 383, 12, 259]),
        ('<extra_id_200>', [3 + byte for byte in b'<extra_id_200>']),
        ('<extra_id_03>', [3 + byte for byte in b'<extra_id_03>']),
        ('a</s>', [3 + byte for byte in b'a</s>']),  # transformers: [100, 1]
    ],
)
def test_byt5_has_bytes_and_then_sentinels_in_ascending_order(
    loaded, text, ids
):
  byt5 = loaded('byt5')
  assert byt5.vocab_size == 384
  assert list(byt5.encode(text)) == ids
  assert byt5.decode(ids) == text


def test_halves_of_characters_are_left_out(loaded):
  assert (
      loaded('byt5').decode([3 + 0xC3, 262, 3 + 0xA9, 100]) == '<extra_id_3>a'
  )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('text', AWKWARD)
def test_what_was_read_once_stays_as_it_is(loaded, kind, text):
  vocabulary = loaded(kind)
  once = vocabulary.decode(vocabulary.encode(text))
  if kind == 'byt5':
    assert once == text
  elif '⁇' not in once and '<extra_id_' not in once:
    assert vocabulary.decode(vocabulary.encode(once)) == once


@pytest.mark.parametrize('kind', KINDS)
def test_text_never_becomes_a_control_token(loaded, kind):
  vocabulary = loaded(kind)
  ids = vocabulary.encode('a</s> </s> <pad><unk>')
  assert not {0, 1, 2} & set(ids)
  assert vocabulary.decode(ids) == 'a</s> </s> <pad><unk>'


@pytest.mark.parametrize('kind', KINDS)
def test_numbers_without_text_decode_to_nothing(loaded, kind):
  vocabulary = loaded(kind)
  size = vocabulary.vocab_size
  ids = list(vocabulary.encode('the draft'))
  assert vocabulary.decode([*ids, size, size + 27, 10**6, -1, 0]) == 'the draft'
  assert vocabulary.decode(np.array([*ids, 1, *ids])) == 'the draft'
  assert vocabulary.decode([size + 5]) == ''
  assert vocabulary.decode([]) == ''
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)


@pytest.mark.parametrize('kind', KINDS)
def test_any_numbers_decode(loaded, kind):
  vocabulary = loaded(kind)

  @hypothesis.given(strategies.lists(strategies.integers(-1, 500), max_size=20))
  @hypothesis.settings(max_examples=50)
  def decodes(ids):
    assert isinstance(vocabulary.decode(ids), str)

  decodes()


@hypothesis.given(
    strategies.text(strategies.characters(exclude_categories=['Cs']))
)
@hypothesis.example('<extra_id_1><extra_id_12>')
@hypothesis.settings(max_examples=50)
def test_any_text_comes_back_from_bytes_and_sentinels(text):
  vocabulary = vocabulary_kinds.Bytes([f'<extra_id_{i}>' for i in range(125)])
  assert vocabulary.decode(vocabulary.encode(text)) == text


@pytest.mark.parametrize('kind', KINDS)
def test_copies_are_equal(loaded, kind):
  vocabulary = loaded(kind)
  again = copy.deepcopy(vocabulary)
  assert again == vocabulary
  assert again.encode(SENTINEL) == vocabulary.encode(SENTINEL)
  assert vocabulary != vocabularies.load('bytes')


def test_pieces_have_one_name(loaded):
  t5, mt5 = (loaded(kind).pieces for kind in ('t5', 'mt5'))
  assert t5[:5] == ['<pad>', '</s>', '<unk>', '▁', '▁the']
  assert t5[-1] == mt5[-1] == '<extra_id_0>'
  assert loaded('byt5').pieces[258:260] == ['<0xFF>', '<extra_id_0>']


def spelt(surfaces, ids):
  """What the surfaces of these numbers spell together."""
  text, begun = b'', False
  for number in ids:
    if begun:
      text += surfaces.later[number]
    elif surfaces.first[number] is not None:
      text += surfaces.first[number]
      begun = True
  return text


@pytest.mark.parametrize('kind', [*KINDS, 'bytes'])
def test_surfaces_spell_what_is_decoded(loaded, kind):
  vocabulary = vocabularies.load('bytes') if kind == 'bytes' else loaded(kind)
  size = vocabulary.vocab_size
  surfaces = vocabulary_kinds.surfaces(vocabulary)
  assert len(surfaces.later) == len(surfaces.first) == size

  @hypothesis.given(
      strategies.lists(
          # Often what texts begin with: controls, blanks, words.
          strategies.one_of(
              strategies.integers(0, 12), strategies.integers(0, size - 1)
          ).filter(lambda number: number != 1),
          max_size=12,
      )
  )
  @hypothesis.settings(max_examples=300)
  def agree(ids):
    # Broken characters: bytes are left out, SentencePiece marks each.
    text = spelt(surfaces, ids)
    how = 'ignore' if 'byt' in kind else 'replace'
    if how == 'ignore' or '\ufffd' not in text.decode(errors='replace'):
      assert text.decode(errors=how) == vocabulary.decode(ids)

  agree()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('text', AWKWARD)
def test_surfaces_spell_texts(loaded, kind, text):
  vocabulary = loaded(kind)
  ids = vocabulary.encode(text)
  surfaces = vocabulary_kinds.surfaces(vocabulary)
  assert spelt(surfaces, ids).decode() == vocabulary.decode(ids)


def test_surfaces_know_bytes_sentinels_and_controls(loaded):
  later, first = vocabulary_kinds.surfaces(loaded('mt5'))
  assert later[:3] == [b'', b'', ' ⁇ '.encode()]
  assert first[:2] == [None, None]  # a text has still to begin
  assert later[3 + 0xE2] == first[3 + 0xE2] == b'\xe2'
  assert (later[-1], first[-1]) == (b' <extra_id_0>', b'<extra_id_0>')
  later, first = vocabulary_kinds.surfaces(loaded('byt5'))
  assert later[2] == b'' and later[3 + 32] == first[3 + 32] == b' '
  assert later[259] == b'<extra_id_0>'
