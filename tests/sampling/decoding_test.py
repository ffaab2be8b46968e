"""Decoding settings: each refusal names the setting, value and limit."""

import math

import pytest

from distillspec_jax.core import errors
from distillspec_jax.sampling import decoding as decoding_lib


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('temperature', -0.5, r'temperature is -0.5; it must be at least 0'),
        ('temperature', math.nan, 'temperature is nan; it must be at least 0'),
        ('top_k', -1, r'top_k is -1; it must be at least 0 \(0 allows all'),
        ('top_p', 0.0, r'top_p is 0.0; it must lie in \(0, 1\]'),
        ('top_p', 1.5, r'top_p is 1.5; it must lie in \(0, 1\]'),
        ('top_p', math.nan, 'top_p is nan; it must lie in'),
        ('max_new_tokens', 0, 'max_new_tokens is 0; it must be at least 1'),
        (
            'block_length',
            0,
            r'block_length is 0; it must lie in \[1, max_new_tokens = 128\]',
        ),
        ('block_length', 129, 'block_length is 129; it must lie in'),
        ('verification', 'magic', "verification is 'magic'; it must be"),
        ('lenience', ('linear',), r"lenience is \('linear',\); give"),
        ('lenience', ('cubic', 0.5), "function is 'cubic'; it must be one of"),
        ('lenience', ('linear', 0.0), r'epsilon is 0.0; it must lie in \(0'),
        ('lenience', ('linear', 1.5), 'epsilon is 1.5'),
        ('lenience', ('linear', 0.5, 'draft'), "residual is 'draft'"),
    ],
)
def test_bad_values_are_refused_by_name(field, value, message):
  with pytest.raises(errors.UserError, match=message):
    decoding_lib.Decoding(**{field: value})


def test_a_block_of_no_tokens_names_the_remedy():
  with pytest.raises(errors.UserError, match='leave the draft out'):
    decoding_lib.Decoding(block_length=0)


def test_limits_themselves_are_allowed():
  decoding_lib.Decoding(block_length=128, max_new_tokens=128)
  decoding_lib.Decoding(block_length=1, max_new_tokens=1)
  decoding_lib.Decoding(temperature=1e-3, top_k=1, top_p=1e-6)


def test_greedy_is_temperature_zero():
  assert decoding_lib.Decoding().greedy
  assert not decoding_lib.Decoding(temperature=0.1).greedy


def test_equal_settings_are_one_key_of_the_compilation_cache():
  one, two = (decoding_lib.Decoding(top_p=0.9) for _ in range(2))
  assert one == two and hash(one) == hash(two)
  assert one != decoding_lib.Decoding(top_p=0.8)


def test_lenience_is_of_token_verification_alone():
  with pytest.raises(errors.UserError, match="lenience is of 'token' alone"):
    decoding_lib.Decoding(verification='block', lenience=('linear', 0.5))


def test_description_omits_what_had_no_effect():
  decoding = decoding_lib.Decoding(temperature=1.0, top_k=5, block_length=3)
  with_draft = decoding.describe(speculative=True, batch_size=4)
  alone = decoding.describe(speculative=False, batch_size=4)
  assert with_draft == {
      'temperature': 1.0,
      'top_k': 5,
      'top_p': 1.0,
      'block_length': 3,
      'verification': 'token',
      'lenience': None,
      'batch_size': 4,
      'max_new_tokens': 128,
  }
  assert alone == {**with_draft, 'block_length': None, 'verification': None}
