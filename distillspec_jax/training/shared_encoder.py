"""A draft without an encoder, out of an ordinary one: it reads the target's.

The decoder stays as it is. What takes the encoder's place is a linear map of
the target's encoder output, fitted by least squares to give what the encoder
gave, so that training begins near the draft it started from.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib

# Added to the second moments, as a share of their mean: directions that the
# target's encoder hardly uses stay small in the map.
_RIDGE = 1e-4


def config(
    draft: config_lib.T5Config, target: config_lib.T5Config
) -> config_lib.T5Config:
  """The draft's configuration, reading the target's encoder output."""
  return dataclasses.replace(
      draft, num_encoder_layers=0, encoded_dim=target.emb_dim
  )


def from_draft(
    draft: loading.Model,
    target: loading.Model,
    inputs: Iterable[tuple[jax.Array, jax.Array]],
    mesh: jax.sharding.Mesh | None = None,
) -> loading.Model:
  """The draft with its encoder replaced by a map of the target's output.

  Args:
    draft: an encoder-decoder.
    target: whose encoder is to be shared; it reads the same tokens.
    inputs: (inputs int32[B, S], segments int32[B, S]) to fit the map on; some
      tens of tokens for each of the target's emb_dim.
    mesh: where the parameters are laid out.

  Raises:
    UserError: one of the models has no encoder, the draft has int8 weights, or
      there are no inputs.
  """
  for model in (target, draft):
    if not model.config.num_encoder_layers:
      raise errors.UserError(
          f'{model.name} has no encoder of its own; a shared encoder needs a'
          ' target and a draft that are encoder-decoder models.'
      )
  draft.config.require_float('trained')
  transformer = transformer_lib.Transformer(
      config(draft.config, target.config), draft.transformer.layout
  )
  kernel = jnp.asarray(_fit(draft, target, inputs), jnp.float32)
  if mesh is not None:
    layout = transformer.shardings(mesh)['encoder_projection']['kernel']
    kernel = jax.device_put(kernel, layout)
  params = {k: v for k, v in draft.params.items() if k != 'encoder'}
  params['encoder_projection'] = {'kernel': kernel}
  return dataclasses.replace(draft, transformer=transformer, params=params)


def _fit(
    draft: loading.Model,
    target: loading.Model,
    inputs: Iterable[tuple[jax.Array, jax.Array]],
) -> np.ndarray:
  """float64[E, D]: the map of least squared error over all real tokens."""
  width = target.config.emb_dim
  squares = np.zeros((width, width))
  products = np.zeros((width, draft.config.emb_dim))
  for tokens, segments in inputs:
    found = _moments(
        target.transformer, draft.transformer, target.params, draft.params,
        tokens, segments,
    )  # fmt: skip
    squares += np.asarray(found[0], np.float64)
    products += np.asarray(found[1], np.float64)
  size = np.trace(squares) / width
  if not size > 0.0:
    raise errors.UserError(
        'There is no input to fit the shared encoder on; the training split'
        ' must have at least one.'
    )
  ridge = _RIDGE * size * np.eye(width)
  return np.linalg.solve(squares + ridge, products)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _moments(
    target: transformer_lib.Transformer,
    draft: transformer_lib.Transformer,
    target_params: Any,
    draft_params: Any,
    inputs: jax.Array,
    segments: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Sums over real tokens of x x^T and x y^T: x the target's output, y ours."""
  real = (segments > 0)[..., None]
  x, y = (
      jnp.where(real, model.encode(params, inputs, segments), 0)
      for model, params in ((target, target_params), (draft, draft_params))
  )
  product = functools.partial(
      jnp.einsum,
      'bsd,bse->de',
      preferred_element_type=jnp.float32,
      precision='highest',
  )
  return product(x, x), product(x, y.astype(x.dtype))
