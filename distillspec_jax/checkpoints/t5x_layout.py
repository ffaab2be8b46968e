"""The parameters of any of t5x's networks, under our names.

t5x has three networks. Ours has the names of the first; the others are turned
into it, lazily:

  t5            encoder/layers_0/attention/query/kernel [D, H * K]
  scalable_t5   encoder/encoder/attention/query/kernel [D, L, H, K]: layers are
                scanned along axis 1, heads not joined, and every layer has a
                relative bias of its own
  decoder_only  no encoder, decoder/token_embedder/embedding

A checkpoint carries no configuration; it follows from the shapes.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints.tensors import Index
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors
from distillspec_jax.models import config as config_lib

_EMBEDDING = 'token_embedder/embedding'
_LOGITS = 'decoder/logits_dense/kernel'
_SCAN_AXIS = 1

# Paths from whose shapes the sizes of a model are read.
_QUERY = r'.*/(query|key|value)/kernel'
_BIAS = r'(encoder|decoder)/(layers_\d+/)?relpos_bias/rel_embedding'
_MLP = r'.*/mlp/(wi|wi_0)/kernel'


def to_ours(
    on_disk: Mapping[str, Tensor], where: Any
) -> tuple[config_lib.T5Config, dict[str, Tensor]]:
  """The configuration, and the tensors by path in our naming.

  Args:
    on_disk: by path, as t5x wrote them.
    where: is named in errors.

  Raises:
    UserError: it is not a T5, or not a complete one; all that is missing, left
      over or of another shape is named.
  """
  unstacked = parameters.unstacked(with_our_embedding(on_disk), _SCAN_AXIS)
  tensors = {path: _joined(path, x) for path, x in unstacked.items()}
  config = _config(tensors, where)
  wrong = parameters.mismatches(tensors, parameters.shapes(config))
  if wrong:
    raise errors.UserError(
        f'{where} is not a complete T5 that can be read here: {wrong}. Copy the'
        ' checkpoint again if it is one of t5x; other architectures cannot be'
        ' read.'
    )
  return config, tensors


def with_our_embedding(by_path: Mapping[str, Any]) -> dict[str, Any]:
  """The same with decoder_only's embedding, or its state, where ours is."""
  if any(path.startswith(_EMBEDDING) for path in by_path):
    return dict(by_path)
  return {
      path.removeprefix('decoder/')
      if path.startswith(f'decoder/{_EMBEDDING}')
      else path: value
      for path, value in by_path.items()
  }


def with_their_embedding(by_path: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `with_our_embedding`."""
  if any(path.startswith('encoder/') for path in by_path):
    return dict(by_path)
  return {
      f'decoder/{path}' if path.startswith(_EMBEDDING) else path: value
      for path, value in by_path.items()
  }


def join_axes(tensor: Tensor, axis: int) -> Tensor:
  """The tensor with axes `axis` and `axis + 1` reshaped into one."""
  outer, inner = tensor.shape[axis : axis + 2]

  def read(index: Index) -> np.ndarray:
    # A range of the joined axis may begin and end within an inner axis, as
    # [1, 5) does of [H, 3]. Read are all outer entries that it touches, here
    # [0, 2); reshaped they are [0, 6), from which the range is cut.
    start, stop = index[axis].start, index[axis].stop
    first, last = start // inner, -(-stop // inner)
    touched = (slice(first, last), slice(0, inner))
    block = tensor.read((*index[:axis], *touched, *index[axis + 1 :]))
    size = (last - first) * inner
    block = block.reshape(*block.shape[:axis], size, *block.shape[axis + 2 :])
    part = slice(start - first * inner, stop - first * inner)
    return block[(slice(None),) * axis + (part,)]

  shape = (*tensor.shape[:axis], outer * inner, *tensor.shape[axis + 2 :])
  return Tensor(shape, tensor.dtype, read)


def _joined(path: str, tensor: Tensor) -> Tensor:
  """With heads and their size in one axis, if they are not."""
  if len(tensor.shape) == 3 and re.fullmatch(_QUERY, path):
    return join_axes(tensor, 1)  # [D, H, K] -> [D, H * K]
  if len(tensor.shape) == 3 and path.endswith('/out/kernel'):
    return join_axes(tensor, 0)  # [H, K, D] -> [H * K, D]
  return tensor


def _config(tensors: Mapping[str, Tensor], where: Any) -> config_lib.T5Config:
  """All of the configuration that parameters depend on.

  Sizes are those that most tensors have, so that one that is damaged is
  reported and not believed.
  """
  embedding = _shape(tensors, _EMBEDDING)
  query = _shape(tensors, _QUERY)
  bias = _shape(tensors, _BIAS)
  mlp = _shape(tensors, _MLP)
  depths = {side: _depth(tensors, side) for side in ('encoder', 'decoder')}
  required = {
      'token_embedder/embedding [vocabulary, width]': embedding,
      'a query/kernel [width, heads x size]': query,
      'a relpos_bias/rel_embedding [heads, buckets]': bias,
      'an mlp/wi or mlp/wi_0 kernel [width, width of the mlp]': mlp,
      'decoder/layers_0': depths['decoder'],
  }
  absent = [name for name, value in required.items() if not value]
  if absent:
    paths = sorted(tensors)
    more = f' and {len(paths) - 5} more' if len(paths) > 5 else ''
    raise errors.UserError(
        f'{where} is not a T5 that can be read here: it lacks'
        f' {", ".join(absent)}. It has {", ".join(paths[:5])}{more}. Of t5x,'
        ' its networks t5, scalable_t5 and decoder_only can be read.'
    )
  if query[1] % bias[0]:
    raise errors.UserError(
        f'{where} has {bias[0]} heads by its relpos_bias/rel_embedding, by'
        f' which the {query[1]} columns of its query/kernel cannot be divided.'
        ' It is no T5, or it is damaged.'
    )
  is_gated = any(path.endswith('/mlp/wi_0/kernel') for path in tensors)
  own_bias = re.compile(r'(encoder|decoder)/layers_\d+/relpos_bias/.*')
  values = {
      'vocab_size': embedding[0],
      'emb_dim': embedding[1],
      'num_heads': bias[0],
      'head_dim': query[1] // bias[0],
      'mlp_dim': mlp[1],
      'num_encoder_layers': depths['encoder'],
      'num_decoder_layers': depths['decoder'],
      'mlp_activations': ('gelu', 'linear') if is_gated else ('relu',),
      'logits_via_embedding': _LOGITS not in tensors,
      'relative_buckets': bias[1],
      'relative_bias_per_layer': any(map(own_bias.fullmatch, tensors)),
  }
  return parameters.parse_config(values, where)


def _shape(tensors: Mapping[str, Tensor], paths: str) -> tuple[int, ...]:
  """The commonest shape of matrices under such paths; () if there are none."""
  shapes = collections.Counter(
      tensor.shape
      for path, tensor in tensors.items()
      if len(tensor.shape) == 2
      and min(tensor.shape) > 0
      and re.fullmatch(paths, path)
  )
  return shapes.most_common(1)[0][0] if shapes else ()


def _depth(tensors: Mapping[str, Tensor], side: str) -> int:
  matches = (re.match(rf'{side}/layers_(\d+)/', path) for path in tensors)
  return max((int(match[1]) + 1 for match in matches if match), default=0)
