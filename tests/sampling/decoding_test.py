"""Decoding settings: one value, refused by name where they make no sense."""

import dataclasses
import json
import math

import numpy as np
import pytest

from distillspec_jax.core import errors
from distillspec_jax.models import config as config_lib
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import verification

Decoding = decoding_lib.Decoding
LENIENT = verification.Lenient('linear', 0.5)


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('temperature', -0.5, r'temperature is -0.5; it must lie in'),
        ('temperature', math.nan, 'temperature is nan; it must lie in'),
        ('temperature', None, 'temperature is None; it must lie in'),
        ('top_k', -1, r'top_k is -1; it must be at least 0 \(0 allows all'),
        ('top_p', 0.0, r'top_p is 0.0; it must lie in \(0, 1\]'),
        ('top_p', 1.5, r'top_p is 1.5; it must lie in \(0, 1\]'),
        ('top_p', math.nan, 'top_p is nan; it must lie in'),
        ('top_k', 2.5, 'top_k is 2.5; it must be a whole number, at least 0'),
        ('length', 2.0, 'block_length is 2.0; it must be a whole number'),
        ('temperature', 10**400, 'temperature is 10+.*; it must lie in'),
        ('max_new_tokens', 10**12, 'max_new_tokens is 10+; it must be at most'),
        ('log_probs', 'no', "log_probs is 'no'; it must be one of True"),
        ('length', 0, 'block_length is 0; it must be at least 1'),
        ('paths', 0, 'paths is 0; it must be at least 1'),
        (
            'adaptive',
            'confidence(0.4)',
            r"adaptive is 'conf.*; give Confidence",
        ),
        ('adaptive', 0.4, r'adaptive is 0.4; give Confidence\(c\), Entropy\(h'),
        ('parallel', 'yes', "parallel is 'yes'; it must be one of True"),
        ('max_new_tokens', 0, 'max_new_tokens is 0; it must be at least 1'),
        (
            'verifier',
            'block',
            r"verifier is 'block'; give an instance of a ver",
        ),
        ('verifier', verification.Block, 'verifier is <class .*; give an inst'),
        ('eos_ids', 1, r'eos_ids is 1; give tokens, as in \(1,\), or \(\) for'),
        ('eos_ids', (1, -2), 'eos_ids has -2; token ids are whole numbers'),
        ('eos_ids', (1.5,), 'eos_ids has 1.5; token ids are whole numbers'),
    ],
)
def test_bad_values_are_refused_by_name(field, value, message):
  with pytest.raises(errors.UserError, match=message):
    Decoding().replace(**{field: value})


def test_numbers_of_numpy_become_those_that_json_holds():
  decoding = Decoding().replace(
      temperature=np.float32(0.5),
      top_k=np.int64(3),
      length=np.int32(2),
      paths=np.int64(1),
      max_new_tokens=np.int64(4),
  )
  assert json.loads(
      json.dumps(decoding.describe(speculative=True, batch_size=1))
  ) == decoding.describe(speculative=True, batch_size=1)


def test_groups_of_another_kind_are_refused():
  with pytest.raises(errors.UserError, match='Decoding.sampling is 0.5; give'):
    Decoding(sampling=0.5)
  with pytest.raises(errors.UserError, match='Decoding.drafting is Sampling'):
    Decoding(drafting=decoding_lib.Sampling())


@pytest.mark.parametrize('temperature', [0, 1e-7, 1e-300])
def test_temperatures_below_the_resolution_of_logits_are_greedy(temperature):
  assert Decoding().replace(temperature=temperature).is_greedy
  assert not Decoding().replace(temperature=1e-6).is_greedy


@pytest.mark.parametrize(
    'verifier, name',
    [
        (verification.Block(), 'block'),
        (LENIENT, r'lenient\(linear, 0.5\)'),
        (verification.Typical(), 'typical'),
        (verification.Simulated(0.5), r'simulated\(0.5\)'),
    ],
)
def test_several_paths_are_for_token_verification_alone(verifier, name):
  with pytest.raises(
      errors.UserError,
      match=f'paths is 2, but the verifier {name} judges single drafts; use'
      r' Token\(\), or paths = 1',
  ):
    Decoding().replace(paths=2, verifier=verifier)
  assert Decoding().replace(paths=2).drafting.paths == 2
  assert Decoding().replace(verifier=verifier).verifier == verifier


def test_a_block_longer_than_the_output_is_refused_where_one_is_drafted():
  decoding = Decoding().replace(length=129)  # no draft, no harm
  with pytest.raises(
      errors.UserError,
      match=r'block_length is 129; it must lie in \[1, max_new_tokens = 128\]'
      '.*leave the draft out',
  ):
    decoding.check_speculative()
  decoding.replace(max_new_tokens=129).check_speculative()
  for length in (1, 128):
    Decoding().replace(length=length, max_new_tokens=length).check_speculative()


def test_parallel_drafts_are_single_and_have_a_mask_token():
  with pytest.raises(
      errors.UserError,
      match='parallel is True and paths is 2; a parallel draft proposes a sing'
      'le path. Use paths = 1',
  ):
    decoding_lib.Drafting(parallel=True, paths=2)
  decoding = Decoding().replace(parallel=True)
  plain = config_lib.published('test', 40)
  with pytest.raises(
      errors.UserError,
      match='mask token, but runs/draft has none .* Train it with Method'
      '.parallel, or leave parallel out',
  ):
    decoding.check_speculative(plain, 'runs/draft')
  decoding.check_speculative(dataclasses.replace(plain, mask_token=0))
  decoding.check_speculative()  # of a draft that is not known yet
  Decoding().check_speculative(plain)


def test_limits_themselves_are_allowed():
  Decoding().replace(temperature=1e-3, top_k=1, top_p=1e-6, length=1)


def test_greedy_is_temperature_zero():
  assert Decoding().is_greedy
  assert not Decoding().replace(temperature=0.1).is_greedy


def test_equal_settings_are_one_key_of_the_compilation_cache():
  build = lambda **changes: Decoding().replace(
      top_p=0.9,
      adaptive=adaptive_length.Confidence(0.4),
      verifier=verification.Lenient('linear', 0.5),
      **changes,
  )
  one, two = build(), build()
  assert one == two and hash(one) == hash(two)
  for changes in (
      {'top_p': 0.8},
      {'adaptive': adaptive_length.Confidence(0.5)},
      {'adaptive': adaptive_length.Entropy(0.4)},
      {'verifier': verification.Lenient('linear', 0.6)},
      {'verifier': verification.Token()},
      {'log_probs': True},
      {'parallel': True},
  ):
    assert one != one.replace(**changes)
  numbers = build(eos_ids=[np.int64(1), 5])
  assert numbers == build(eos_ids=(1, 5))
  assert hash(numbers) == hash(build(eos_ids=(1, 5)))


# Other settings.


def test_fields_of_groups_are_replaced_as_those_of_the_decoding():
  decoding = Decoding(
      sampling=decoding_lib.Sampling(top_k=3), max_new_tokens=9
  ).replace(temperature=1.0, paths=2, log_probs=True)
  assert decoding == Decoding(
      sampling=decoding_lib.Sampling(temperature=1.0, top_k=3),
      drafting=decoding_lib.Drafting(paths=2),
      max_new_tokens=9,
      log_probs=True,
  )
  # A group that is given is changed after it is put in place.
  group = decoding_lib.Drafting(length=7, paths=3)
  assert decoding.replace(drafting=group, length=2).drafting == (
      decoding_lib.Drafting(length=2, paths=3)
  )
  with pytest.raises(TypeError, match='block_lengths'):
    decoding.replace(block_lengths=3)


def test_an_autoregressive_program_is_shared_by_all_drafting():
  decoding = Decoding().replace(temperature=1.0, max_new_tokens=9)
  other = decoding.replace(
      length=3, adaptive=adaptive_length.Entropy(1.0), verifier=LENIENT
  )
  assert other != decoding
  assert other.without_draft() == decoding.without_draft()
  hotter = other.replace(temperature=2.0)
  assert hotter.without_draft() != decoding.without_draft()


def test_a_default_length_gives_way_to_one_that_is_set():
  assert Decoding().output_length == 128
  assert Decoding().with_default_length(9).output_length == 9
  assert Decoding(max_new_tokens=5).with_default_length(9).output_length == 5


# In results and tables.


def test_a_description_omits_what_had_no_effect():
  decoding = Decoding().replace(
      temperature=1.0,
      top_k=5,
      length=3,
      adaptive=adaptive_length.Confidence(0.4),
      parallel=True,
      verifier=verification.Block(),
  )
  with_draft = decoding.describe(speculative=True, batch_size=4)
  alone = decoding.describe(speculative=False, batch_size=4)
  assert with_draft == {
      'temperature': 1.0,
      'top_k': 5,
      'top_p': 1.0,
      'block_length': 3,
      'paths': 1,
      'adaptive': 'confidence(0.4)',
      'parallel': True,
      'verifier': 'block',
      'lossless': True,
      'batch_size': 4,
      'max_new_tokens': 128,
  }
  nothing = dict.fromkeys(
      ('block_length', 'paths', 'adaptive', 'parallel', 'verifier', 'lossless')
  )
  assert alone == {**with_draft, **nothing}
  plain = Decoding().describe(speculative=True, batch_size=1)
  assert plain['adaptive'] is None and plain['verifier'] == 'token'
  assert plain['parallel'] is None


@pytest.mark.parametrize(
    'changes, label',
    [
        ({}, 'greedy, block length 5'),
        ({'temperature': 0.5, 'length': 3}, 'T = 0.5, block length 3'),
        (
            {'temperature': 1.0, 'top_k': 4, 'top_p': 0.9, 'paths': 2},
            'T = 1, top-k 4, top-p 0.9, block length 5, 2 paths',
        ),
        (
            {'adaptive': adaptive_length.Entropy(2.0), 'verifier': LENIENT},
            'greedy, block length 5, entropy(2), lenient(linear, 0.5)',
        ),
        ({'parallel': True}, 'greedy, block length 5, parallel'),
    ],
)
def test_a_label_has_what_differs_from_the_defaults(changes, label):
  assert Decoding().replace(**changes).label() == label


# Grids.


def test_a_grid_has_every_combination_once_in_order():
  grid = decoding_lib.grid(
      temperatures=(1.0, 0.5),
      block_lengths=(3, 5),
      adaptive=(None, 'confidence(0.4)', adaptive_length.Entropy(2.0)),
      verifiers=('token', verification.Block(), 'lenient(linear, 0.5)'),
      top_k=7,
      top_p=0.8,
      max_new_tokens=9,
  )
  settings = [
      (
          decoding.sampling.temperature,
          decoding.drafting.length,
          decoding.drafting.adaptive,
          decoding.verifier,
      )
      for decoding in grid
  ]
  assert settings == [
      (temperature, length, adaptive, verifier)
      for temperature in (1.0, 0.5)
      for length in (3, 5)
      for adaptive in (
          None,
          adaptive_length.Confidence(0.4),
          adaptive_length.Entropy(2.0),
      )
      for verifier in (verification.Token(), verification.Block(), LENIENT)
  ]
  sampling = grid[0].sampling
  assert (sampling.top_k, sampling.top_p) == (7, 0.8)
  assert {decoding.max_new_tokens for decoding in grid} == {9}


def test_greedy_lossless_verifiers_are_one():
  grid = decoding_lib.grid(
      temperatures=(0.0, 1.0),
      verifiers=('block', 'token', 'typical', 'block'),
  )
  settings = [(d.is_greedy, d.verifier.describe()) for d in grid]
  assert settings == [
      (True, 'block'),
      (True, 'typical'),
      (False, 'block'),
      (False, 'token'),
      (False, 'typical'),
  ]


def test_several_paths_are_combined_with_verifiers_that_support_them():
  grid = decoding_lib.grid(
      temperatures=(0.0, 1.0), paths=(1, 3), verifiers=('block', 'token')
  )
  settings = [
      (d.is_greedy, d.drafting.paths, d.verifier.describe()) for d in grid
  ]
  assert settings == [
      (True, 1, 'block'),
      (True, 3, 'token'),
      (False, 1, 'block'),
      (False, 1, 'token'),
      (False, 3, 'token'),
  ]


def test_parallel_drafts_are_combined_with_single_paths():
  grid = decoding_lib.grid(
      temperatures=(0.0,), paths=(1, 2), parallel=(False, True)
  )
  settings = [(d.drafting.paths, d.drafting.parallel) for d in grid]
  assert settings == [(1, False), (1, True), (2, False)]


@pytest.mark.parametrize(
    'values, message',
    [
        ({'temperatures': ()}, 'A grid of decodings is empty; give at least'),
        ({'block_lengths': ()}, 'A grid of decodings is empty'),
        ({'paths': (2,), 'verifiers': ('block',)}, 'a verifier that supports'),
        ({'paths': (2,), 'parallel': (True,)}, 'and one path, or a verifier'),
        ({'temperatures': (-1.0,)}, 'temperature is -1.0'),
        ({'block_lengths': (0,)}, 'block_length is 0'),
        ({'verifiers': ('magic',)}, "There is no verifier called 'magic'"),
        ({'adaptive': ('luck(1)',)}, 'There is no adaptive draft length call'),
    ],
)
def test_grids_that_make_no_sense_are_refused(values, message):
  with pytest.raises(errors.UserError, match=message):
    decoding_lib.grid(**values)
