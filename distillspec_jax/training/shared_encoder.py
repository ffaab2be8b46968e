"""A draft that shares its target's encoder, made from an ordinary draft.

The decoder stays as it is. The encoder is replaced by a linear map of the
target's encoder output, fitted by least squares to the encoder's own output, so
that training begins near the draft that it started from.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.core import types
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import model as model_lib
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
    draft: loading.Loaded,
    target: loading.Loaded,
    prompts: Iterable[types.Prompt],
    mesh: jax.sharding.Mesh | None = None,
) -> loading.Loaded:
  """The draft with its encoder replaced by a map of the target's output.

  Args:
    draft: an encoder-decoder.
    target: whose encoder is to be shared; it reads the same tokens.
    prompts: to fit the map on; some tens of tokens for each of the target's
      emb_dim.
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
  network = transformer_lib.Transformer(
      config(draft.config, target.config), draft.model.network.layout
  )
  kernel = jnp.asarray(_fit(draft.model, target.model, prompts), jnp.float32)
  if mesh is not None:
    layout = network.shardings(mesh)['encoder_projection']['kernel']
    kernel = jax.device_put(kernel, layout)
  params = {k: v for k, v in draft.model.params.items() if k != 'encoder'}
  params['encoder_projection'] = {'kernel': kernel}
  return dataclasses.replace(draft, model=model_lib.Model(params, network))


def _fit(
    draft: model_lib.Model,
    target: model_lib.Model,
    prompts: Iterable[types.Prompt],
) -> np.ndarray:
  """float64[E, D]: the map of least squared error over all real tokens."""
  width = target.config.emb_dim
  squares = np.zeros((width, width))
  products = np.zeros((width, draft.config.emb_dim))
  for prompt in prompts:
    square, product = _moments(target, draft, prompt)
    squares += np.asarray(square, np.float64)
    products += np.asarray(product, np.float64)
  size = np.trace(squares) / width
  if not size > 0.0:
    raise errors.UserError(
        'There is no input to fit the shared encoder on; the training split'
        ' must have at least one.'
    )
  ridge = _RIDGE * size * np.eye(width)
  return np.linalg.solve(squares + ridge, products)


@jax.jit
def _moments(
    target: model_lib.Model, draft: model_lib.Model, prompt: types.Prompt
) -> tuple[jax.Array, jax.Array]:
  """Sums over real tokens of x x^T and x y^T, encoder outputs of both."""
  is_real = (prompt.segments > 0)[..., None]
  x, y = (
      jnp.where(is_real, model.encode(prompt), 0) for model in (target, draft)
  )
  product = functools.partial(
      jnp.einsum,
      'bsd,bse->de',
      preferred_element_type=jnp.float32,
      precision='highest',
  )
  return product(x, x), product(x, y.astype(x.dtype))
