"""Drafts that share their target's encoder: pairs, folders and conversions."""

import dataclasses

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distillspec_jax.checkpoints import conversion
from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.sampling import generation
from tests import tiny


def make(name='model', **changes):
  return tiny.loaded(tiny.model(**changes), name)


@pytest.mark.parametrize(
    'target, draft, message',
    [
        ({'emb_dim': 24}, {'encoded_dim': 16}, 'width 16, .* is 24 wide'),
        ({'num_encoder_layers': 0}, {'encoded_dim': 16}, 'is decoder-only'),
        ({'encoded_dim': 16}, {'encoded_dim': 16}, 'has no encoder of its own'),
        ({'encoded_dim': 16}, {}, 'has no encoder of its own'),
        ({}, {'num_encoder_layers': 0}, 'One of target and draft'),
    ],
)
def test_pairs_that_do_not_fit_are_refused(target, draft, message):
  pair = make('target', **target), make('draft', **draft)
  with pytest.raises(errors.UserError, match=message):
    loading.check_pair(*pair)


def test_pairs_that_fit_are_accepted():
  loading.check_pair(make(), make(encoded_dim=16, emb_dim=8))


def test_a_draft_alone_generates_nothing():
  with pytest.raises(errors.UserError, match='it cannot be used alone'):
    generation.generate(
        make(encoded_dim=16), np.full((2, 4), 7), max_new_tokens=4
    )


def test_a_folder_and_a_conversion_keep_it(tmp_path):
  draft = tiny.model(encoded_dim=24, scan_layers=True)
  tiny.save(tmp_path / 'draft', draft)
  loaded = loading.load(tmp_path / 'draft').model
  assert loaded.config == draft.config
  jax.tree.map(np.testing.assert_array_equal, loaded.params, draft.params)
  conversion.convert(
      str(tmp_path / 'draft'), str(tmp_path / 'narrow'), dtype='bfloat16'
  )
  narrow = loading.load(tmp_path / 'narrow').model
  assert narrow.config == dataclasses.replace(draft.config, scan_layers=False)
  kernel = narrow.params['encoder_projection']['kernel']
  assert kernel.dtype == jnp.bfloat16


@pytest.mark.parametrize('to', ['hugging_face', 't5x'])
def test_other_formats_refuse_it(tmp_path, to):
  tiny.save(tmp_path / 'draft', tiny.model(encoded_dim=24))
  with pytest.raises(errors.UserError, match='Write it with to=distillspec'):
    conversion.convert(str(tmp_path / 'draft'), str(tmp_path / 'out'), to=to)
  assert [path.name for path in epath.Path(tmp_path).iterdir()] == ['draft']
