"""Configurations: published sizes, and what is refused."""

import json
import math

import jax
import pytest

from distillspec_jax.core import errors
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer
from tests import tiny

# Parameters of the released checkpoints, 32,128 rows in the embedding.
PARAMETERS = {
    't5_1_1_small': 76_961_152,
    't5_1_1_base': 247_577_856,
    't5_1_1_large': 783_150_080,
    't5_1_1_xl': 2_849_757_184,
    't5_1_1_xxl': 11_135_332_352,
    't5_1_0_small': 60_506_624,
    't5_1_0_base': 222_903_552,
    't5_1_0_large': 737_668_096,
    't5_1_0_xl': 2_851_598_336,
    't5_1_0_xxl': 11_307_321_344,
}


def count(config):
  shapes = transformer.Transformer(config).abstract()
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize('name', PARAMETERS)
def test_published_sizes_have_the_released_number_of_parameters(name):
  scanned = config_lib.published(name, scan_layers=True)  # traces in no time
  assert count(scanned) == PARAMETERS[name]


def test_scanning_does_not_change_the_number_of_parameters():
  config = config_lib.published('t5_1_1_small')
  assert not config.scan_layers
  assert count(config) == PARAMETERS['t5_1_1_small']


@pytest.mark.parametrize(
    'name', ['test', 'nano', 'micro', 'tiny', 'mini', 'midi']
)
def test_laptop_sizes_take_vocabulary_and_changes(name):
  config = config_lib.published(name, 260, num_encoder_layers=0)
  assert config.vocab_size == 260
  assert config.is_decoder_only
  assert count(config) < 20_000_000


def test_v1_0_is_tied_and_relu_and_v1_1_is_neither():
  old = config_lib.published('t5_1_0_small')
  new = config_lib.published('t5_1_1_small')
  assert (old.mlp_activations, old.logits_via_embedding) == (('relu',), True)
  assert (new.mlp_activations, new.logits_via_embedding) == (
      ('gelu', 'linear'),
      False,
  )


@pytest.mark.parametrize('name', ['t5_1_1_smal', 't5_1_0_3B', 't5', ''])
def test_an_unknown_name_lists_the_known_ones(name):
  with pytest.raises(errors.UserError) as error:
    config_lib.published(name)
  assert f'no model called {name!r}' in str(error.value)
  assert 't5_1_1_small' in str(error.value)
  assert 't5_1_0_xxl' in str(error.value)
  assert 'mini' in str(error.value)


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('vocab_size', 0, 'vocab_size is 0; it must be at least 1'),
        ('emb_dim', -1, 'emb_dim is -1; it must be at least 1'),
        ('num_heads', 0, 'num_heads is 0; it must be at least 1'),
        ('head_dim', 0, 'head_dim is 0; it must be at least 1'),
        ('mlp_dim', 0, 'mlp_dim is 0; it must be at least 1'),
        ('num_decoder_layers', 0, 'num_decoder_layers is 0; it must be'),
        ('num_encoder_layers', -2, 'num_encoder_layers is -2; it must be at'),
        ('dropout_rate', 1.0, r'dropout_rate is 1.0; it must lie in \[0, 1\)'),
        ('dropout_rate', -0.1, 'dropout_rate is -0.1'),
        ('dropout_rate', math.nan, 'dropout_rate is nan'),
        ('dtype', 'float16', "dtype is 'float16'; it must be one of"),
        ('remat', 'some', "remat is 'some'; it must be one of"),
        ('mlp_activations', ('gelu', 'tanh'), "mlp_activations is 'tanh'"),
        ('emb_dim', None, 'emb_dim is None; it must be of type int'),
        ('emb_dim', 16.0, 'emb_dim is 16.0; it must be of type int'),
        ('vocab_size', True, 'vocab_size is True; it must be of type int'),
        ('scan_layers', 1, 'scan_layers is 1; it must be of type bool'),
        ('dropout_rate', 'x', "dropout_rate is 'x'; it must be of type float"),
        ('dtype', None, 'dtype is None; it must be of type str'),
        ('mlp_activations', 'relu', "mlp_activations is 'relu'; it must be of"),
        ('mlp_activations', (), 'mlp_activations has 0 entries'),
        ('relative_buckets', 3, 'relative_buckets is 3; it must be at least 4'),
        ('relative_max_distance', 16, 'max_distance is 16; it must be'),
        (
            'norm_epsilon',
            -1e-6,
            r'epsilon is -1e-06; it must lie in \[0, inf\)',
        ),
        ('norm_epsilon', math.inf, 'norm_epsilon is inf'),
        ('num_layers', 3, r"unknown entries \['num_layers'\]"),
    ],
)
def test_bad_values_are_refused_by_name(field, value, message):
  with pytest.raises(errors.UserError, match=message):
    config_lib.published('test', **{field: value})


def test_plain_data_round_trips_through_json():
  config = config_lib.published('t5_1_1_base', dtype='bfloat16', remat='dots')
  text = json.dumps(config.to_dict())
  again = config_lib.T5Config.from_dict(json.loads(text))
  assert again == config
  assert hash(again) == hash(config)  # lists have become tuples


@pytest.mark.parametrize(
    'tokens, message',
    [
        ((0, 1, 1), 'has 1 after 1; token ids must ascend, each once'),
        ((0, 1, 5, 4), 'has 4 after 5; token ids must ascend'),
        ((1, 40), r'from 1 to 40; they must lie in \[0, vocab_size = 40'),
        ((-1, 1), 'has tokens from -1 to 1; they must lie in'),
        ((0, 2), 'lacks 1, the end-of-sequence token'),
        ((), 'lacks 1, the end-of-sequence token'),
        ('12', "is '12'; it must be a tuple of token ids"),
        ((1, 2.5), r'is \(1, 2.5\); it must be a tuple of token ids'),
        (12, 'is 12; it must be a tuple of token ids'),
    ],
)
def test_trimmed_vocabularies_that_make_no_sense_are_refused(tokens, message):
  with pytest.raises(errors.UserError, match=message):
    config_lib.published('test', 40, trimmed_vocabulary=tokens)


def test_a_trimmed_output_layer_is_not_the_embedding():
  with pytest.raises(
      errors.UserError, match='Set logits_via_embedding = False'
  ):
    config_lib.published(
        'test', 40, trimmed_vocabulary=(0, 1), logits_via_embedding=True
    )


def test_a_model_with_an_encoder_reads_no_other_models():
  with pytest.raises(errors.UserError, match='encoded_dim is 16, but num_enc'):
    tiny.config(num_encoder_layers=1, encoded_dim=16)


def test_trimmed_vocabularies_are_restored_and_not_printed_in_full():
  tokens = tuple(range(0, 3000, 3)) + (3001,)
  tokens = tuple(sorted({1, *tokens}))
  config = config_lib.published('test', 4000, trimmed_vocabulary=tokens)
  text = json.dumps(config.to_dict())
  again = config_lib.T5Config.from_dict(json.loads(text))
  assert again == config and hash(again) == hash(config)
  assert again.trimmed_vocabulary == tokens
  assert config.num_logits == len(tokens)
  assert len(repr(config)) < 1000
  shapes = transformer.Transformer(config).abstract()
  assert shapes['decoder']['logits_dense']['kernel'].shape == (16, len(tokens))


@pytest.mark.parametrize('token', (-1, 40, 1.5, 'mask'))
def test_a_mask_token_is_a_token_of_the_vocabulary(token):
  with pytest.raises(errors.UserError, match='T5Config.mask_token'):
    tiny.config(vocab_size=40, mask_token=token)
