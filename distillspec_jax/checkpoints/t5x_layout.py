"""Names and shapes of t5x's parameters: from any of its networks to ours.

t5x has three networks. Ours has the names of the first; the others are turned
into it, lazily:

  t5            encoder/layers_0/attention/query/kernel [D, H * K]
  scalable_t5   encoder/encoder/attention/query/kernel [D, L, H, K]: layers are
                scanned along axis 1, heads not joined, and every layer has a
                relative bias of its own
  decoder_only  no encoder, decoder/token_embedder/embedding

A checkpoint carries no configuration. All of it that parameters depend on
follows from their shapes.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.checkpoints.tensors import Index
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors

_SIDES = ('encoder', 'decoder')
_EMBEDDING = 'token_embedder/embedding'
_DECODER_EMBEDDING = f'decoder/{_EMBEDDING}'
_LOGITS = 'decoder/logits_dense/kernel'
_SCAN_AXIS = 1
_LAYER = re.compile(r'(encoder|decoder)/layers_(\d+)/.*')

# What sizes are read from: name -> paths that show it.
_QUERY = r'.*/(query|key|value)/kernel'
_BIAS = r'(encoder|decoder)/(layers_\d+/)?relpos_bias/rel_embedding'
_MLP = r'.*/mlp/(wi|wi_0)/kernel'


def ours(
    found: Mapping[str, Tensor], where: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
  """The configuration, and the tensors by path in our naming.

  Args:
    found: by path, as on disk.
    where: for messages.

  Raises:
    UserError: it is not a T5, or not a whole one; all that is missing, left
      over or of another shape is named.
  """
  tensors = _joined(_unscanned(with_our_embedding(found)))
  config = _config(tensors, where)
  wrong = tensors_lib.mismatches(tensors, shapes(config))
  if wrong:
    raise errors.UserError(
        f'{where} is not a whole T5 that can be read here: {wrong}. Copy the'
        ' checkpoint again if it is one of t5x; other architectures cannot be'
        ' read.'
    )
  return config, tensors


def is_scanned(paths: Mapping[str, Any]) -> bool:
  """Whether layers are stacked, as scalable_t5 has them."""
  return any(path.startswith(f'{s}/{s}/') for path in paths for s in _SIDES)


def with_our_embedding(found: Mapping[str, Any]) -> dict[str, Any]:
  """The same with decoder_only's embedding where ours is."""
  if _EMBEDDING in found or _DECODER_EMBEDDING not in found:
    return dict(found)
  return {
      _EMBEDDING if path == _DECODER_EMBEDDING else path: value
      for path, value in found.items()
  }


def with_their_embedding(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `with_our_embedding`."""
  if any(path.startswith('encoder/') for path in tensors):
    return dict(tensors)
  return {
      _DECODER_EMBEDDING if path == _EMBEDDING else path: value
      for path, value in tensors.items()
  }


def join_axes(tensor: Tensor, axis: int) -> Tensor:
  """The tensor with axes `axis` and `axis + 1` reshaped into one."""
  inner = tensor.shape[axis + 1]
  before, after = tensor.shape[:axis], tensor.shape[axis + 2 :]

  def read(index: Index) -> np.ndarray:
    start, stop = index[axis].start, index[axis].stop
    first, last = start // inner, -(-stop // inner)
    whole = (slice(first, last), slice(0, inner))
    block = tensor.read((*index[:axis], *whole, *index[axis + 1 :]))
    rows = (last - first) * inner
    block = block.reshape(*block.shape[:axis], rows, *block.shape[axis + 2 :])
    wanted = slice(start - first * inner, stop - first * inner)
    return block[(slice(None),) * axis + (wanted,)]

  shape = (*before, tensor.shape[axis] * inner, *after)
  return Tensor(shape, tensor.dtype, read)


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Path -> shape, of all parameters of a model."""
  width, joined = config['emb_dim'], config['num_heads'] * config['head_dim']
  bias = (config['num_heads'], config['relative_buckets'])
  branches = ['wi'] if len(config['mlp_activations']) == 1 else ['wi_0', 'wi_1']
  table = {_EMBEDDING: (config['vocab_size'], width)}
  for side in _SIDES:
    depth = config[f'num_{side}_layers']
    if not depth:
      continue
    attentions = ['attention']
    norms = ['pre_attention_layer_norm', 'pre_mlp_layer_norm']
    if side == 'decoder':
      attentions = ['self_attention']
      norms = ['pre_self_attention_layer_norm', 'pre_mlp_layer_norm']
      if config['num_encoder_layers']:
        attentions.append('encoder_decoder_attention')
        norms.append('pre_cross_attention_layer_norm')
    for i in range(depth):
      layer = f'{side}/layers_{i}'
      for name in attentions:
        for kernel in ('query', 'key', 'value'):
          table[f'{layer}/{name}/{kernel}/kernel'] = (width, joined)
        table[f'{layer}/{name}/out/kernel'] = (joined, width)
      for name in norms:
        table[f'{layer}/{name}/scale'] = (width,)
      for kernel in branches:
        table[f'{layer}/mlp/{kernel}/kernel'] = (width, config['mlp_dim'])
      table[f'{layer}/mlp/wo/kernel'] = (config['mlp_dim'], width)
      if config['relative_bias_per_layer']:
        table[f'{layer}/relpos_bias/rel_embedding'] = bias
    if not config['relative_bias_per_layer']:
      table[f'{side}/relpos_bias/rel_embedding'] = bias
    table[f'{side}/{side}_norm/scale'] = (width,)
  if not config['logits_via_embedding']:
    table[_LOGITS] = (width, config['vocab_size'])
  return table


def _unscanned(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
  tensors = {}
  for path, tensor in found.items():
    side, *rest = path.split('/')
    is_stacked = side in _SIDES and len(rest) > 1 and rest[0] == side
    if not is_stacked or len(tensor.shape) <= _SCAN_AXIS:
      tensors[path] = tensor
      continue
    name = '/'.join(rest[1:])
    for i in range(tensor.shape[_SCAN_AXIS]):
      tensors[f'{side}/layers_{i}/{name}'] = tensor.at(_SCAN_AXIS, i)
  return tensors


def _joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """With heads and their size in one axis, wherever they are not."""

  def join(path: str, tensor: Tensor) -> Tensor:
    if len(tensor.shape) != 3:
      return tensor
    if re.fullmatch(_QUERY, path):
      return join_axes(tensor, 1)  # [D, H, K] -> [D, H * K]
    if path.endswith('/out/kernel'):
      return join_axes(tensor, 0)  # [H, K, D] -> [H * K, D]
    return tensor

  return {path: join(path, tensor) for path, tensor in tensors.items()}


def _config(tensors: Mapping[str, Tensor], where: Any) -> dict[str, Any]:
  embedding = _shape(tensors, _EMBEDDING)
  query = _shape(tensors, _QUERY)
  bias = _shape(tensors, _BIAS)
  mlp = _shape(tensors, _MLP)
  depths = {side: _depth(tensors, side) for side in _SIDES}
  shown = {
      'token_embedder/embedding [vocabulary, width]': embedding,
      'a query/kernel [width, heads x size]': query,
      'a relpos_bias/rel_embedding [heads, buckets]': bias,
      'an mlp/wi or mlp/wi_0 kernel [width, width of the mlp]': mlp,
      'decoder/layers_0': depths['decoder'],
  }
  absent = [name for name, value in shown.items() if not value]
  if absent:
    raise errors.UserError(
        f'{where} is not a T5 that can be read here: it lacks'
        f' {", ".join(absent)}. It has {_some(tensors)}. Of t5x, its networks'
        ' t5, scalable_t5 and decoder_only can be read.'
    )
  if query[1] % bias[0]:
    raise errors.UserError(
        f'{where} has {bias[0]} heads by its relpos_bias/rel_embedding, by'
        f' which the {query[1]} columns of its query/kernel cannot be divided.'
        ' It is no T5, or it is damaged.'
    )
  is_gated = any(path.endswith('/mlp/wi_0/kernel') for path in tensors)
  own_bias = re.compile(r'(encoder|decoder)/layers_\d+/relpos_bias/.*')
  return {
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


def _shape(tensors: Mapping[str, Tensor], paths: str) -> tuple[int, ...]:
  """The commonest shape of matrices under such paths; () if there are none."""
  matches = re.compile(paths).fullmatch
  found = collections.Counter(
      tensor.shape
      for path, tensor in tensors.items()
      if len(tensor.shape) == 2 and min(tensor.shape) > 0 and matches(path)
  )
  return found.most_common(1)[0][0] if found else ()


def _depth(tensors: Mapping[str, Tensor], side: str) -> int:
  matches = filter(None, map(_LAYER.fullmatch, tensors))
  numbers = (int(match[2]) for match in matches if match[1] == side)
  return max(numbers, default=-1) + 1


def _some(tensors: Mapping[str, Tensor]) -> str:
  paths = sorted(tensors)
  if not paths:
    return 'no parameters at all'
  more = f' and {len(paths) - 5} more' if len(paths) > 5 else ''
  return ', '.join(paths[:5]) + more
