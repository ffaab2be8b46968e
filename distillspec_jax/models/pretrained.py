"""A model in hand: configuration, parameters, vocabulary, and `load`."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from distillspec_jax.checkpoints import model_folder
from distillspec_jax.core import errors
from distillspec_jax.data import vocabularies
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib


@dataclasses.dataclass(frozen=True)
class Model:
  """A transformer with its parameters.

  Attributes:
    transformer: the functions.
    params: their parameters, named as in t5x.
    vocabulary: text <-> tokens, or None.
    name: for tables and messages.
  """

  transformer: transformer_lib.Transformer
  params: Any
  vocabulary: Any = None
  name: str = 'model'

  @property
  def config(self) -> config_lib.T5Config:
    return self.transformer.config

  def logits(
      self,
      inputs: jax.Array,
      decoder_inputs: jax.Array,
      inputs_mask: jax.Array | None = None,
  ) -> jax.Array:
    """Teacher-forced logits float32[B, T, V].

    Args:
      inputs: int32[B, S].
      decoder_inputs: int32[B, T], already shifted right: they start with 0.
      inputs_mask: bool[B, S]; default: inputs are padded with 0.
    """
    inputs = jnp.asarray(inputs, jnp.int32)
    decoder_inputs = jnp.asarray(decoder_inputs, jnp.int32)
    mask = inputs != 0 if inputs_mask is None else jnp.asarray(inputs_mask)
    return _logits(self.transformer, self.params, inputs, mask, decoder_inputs)


@functools.partial(jax.jit, static_argnums=0)
def _logits(transformer, params, inputs, mask, decoder_inputs):
  logits = transformer.logits(
      params,
      inputs,
      mask.astype(jnp.int32),
      decoder_inputs,
      jnp.ones_like(decoder_inputs),
  )
  return logits.astype(jnp.float32)


def load(path: str | pathlib.Path, *, dtype: str | None = None) -> Model:
  """The model in a folder.

  Args:
    path: a model folder (it holds model.json), or a run's folder, of which the
      best checkpoint is taken.
    dtype: what to compute in, 'float32' or 'bfloat16'; default: as saved.

  Raises:
    UserError: there is no model in the folder, or it is not whole.
  """
  path = pathlib.Path(path)
  folder = path if (path / 'params').is_dir() else path / 'best'
  if not (folder / 'model.json').is_file():
    raise errors.UserError(
        f'{path} holds no model: neither {path / "params"} nor'
        f' {path / "best" / "model.json"} is there. Name a model folder or the'
        ' folder of a training run.'
    )
  values = model_folder.read_config(folder)
  config = config_lib.T5Config.from_dict(values)
  if dtype is not None:
    config = dataclasses.replace(config, dtype=dtype)
  transformer = transformer_lib.Transformer(config)
  _, params = model_folder.load_model(folder, transformer.abstract())
  return Model(transformer, params, vocabularies.load_from(folder), str(path))


def check_pair(target: Model, draft: Model) -> None:
  """Raises UserError where the two do not speak of the same tokens.

  Sizes may differ by padding rows: both must round up to the same multiple of
  128, as 32,100 and 32,128 do.
  """
  if target.config.is_decoder_only != draft.config.is_decoder_only:
    raise errors.UserError(
        f'One of {target.name} and {draft.name} is decoder-only, the other is'
        ' not; both must be of one kind.'
    )
  a, b = target.config.vocab_size, draft.config.vocab_size
  if -(-a // 128) != -(-b // 128):
    raise errors.UserError(
        f'The target {target.name} has {a} tokens and the draft {draft.name}'
        f' has {b}. Speculative decoding compares them token by token; only a'
        ' difference in padding rows (up to the next multiple of 128) is'
        ' allowed. Train the draft with the vocabulary of the target.'
    )
  if target.vocabulary is None or draft.vocabulary is None:
    return
  if not vocabularies.same(target.vocabulary, draft.vocabulary):
    raise errors.UserError(
        f'The vocabularies of the target {target.name} and the draft'
        f' {draft.name} differ: the same number stands for different text.'
        ' Train the draft with the vocabulary of the target.'
    )
