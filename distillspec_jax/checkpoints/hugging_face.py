"""Hugging Face folders of T5, T5 v1.1, Flan-T5, ByT5, mT5 and umT5.

config.json, and safetensors in one file or in shards with an index. Linear
layers are [out, in] there and [in, out] here; the transposition is a view.

Two facts about a model are not where one would look for them. Whether the
output layer is the embedding follows from the tensors: newer versions of
transformers write `tie_word_embeddings: true` into every config. Whether logits
are scaled by D**-0.5 follows from `scale_decoder_outputs`, or, where that is
absent, from `tie_word_embeddings` as older versions wrote it; mT5's are not
scaled. umT5's follow `tie_word_embeddings`, as in transformers 4; version 5
scales them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import json
import os
from typing import Any

from etils import epath
import numpy as np

from distillspec_jax.checkpoints import json_files
from distillspec_jax.checkpoints import parameters
from distillspec_jax.checkpoints import safetensors
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors
from distillspec_jax.core import sources
from distillspec_jax.models import config as config_lib

_SINGLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
# Files of other formats, most of which run code when they are read.
_UNREAD = (
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
    'tf_model.h5',
    'flax_model.msgpack',
)
_SHARD_BYTES = 5_000_000_000
_MODEL_TYPES = ('t5', 'mt5', 'umt5')
_TOKEN_IDS = {'pad_token_id': 0, 'eos_token_id': 1, 'decoder_start_token_id': 0}

_SIZES = {  # ours -> theirs
    'vocab_size': 'vocab_size',
    'emb_dim': 'd_model',
    'head_dim': 'd_kv',
    'mlp_dim': 'd_ff',
    'num_heads': 'num_heads',
    'num_encoder_layers': 'num_layers',
    'num_decoder_layers': 'num_decoder_layers',
    'relative_buckets': 'relative_attention_num_buckets',
    'relative_max_distance': 'relative_attention_max_distance',
}
_FIELDS = _SIZES | {
    'norm_epsilon': 'layer_norm_epsilon',
    'dropout_rate': 'dropout_rate',
}
_DEFAULTS = {  # what transformers takes where config.json is silent
    'relative_attention_num_buckets': 32,
    'relative_attention_max_distance': 128,
    'layer_norm_epsilon': 1e-6,
    'dropout_rate': 0.1,
    'tie_word_embeddings': True,
}
_ACTIVATIONS = {  # theirs -> ours
    'gelu': 'gelu_exact',
    'gelu_fast': 'gelu',
    'gelu_new': 'gelu',
    'gelu_pytorch_tanh': 'gelu',
    'linear': 'linear',
    'relu': 'relu',
    'silu': 'silu',
    'swish': 'silu',
}

# Older transformers saved this tensor, which T5 never reads.
_UNUSED = (
    'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight'
)
_SHARED = 'shared.weight'
_HEAD = 'lm_head.weight'
_EMBEDDINGS = (
    _SHARED,
    'encoder.embed_tokens.weight',
    'decoder.embed_tokens.weight',
)
_EMBEDDING = 'token_embedder/embedding'
# Our path -> their name, outside the layers.
_OUTER = {
    _EMBEDDING: _SHARED,
    'encoder/encoder_norm/scale': 'encoder.final_layer_norm.weight',
    'decoder/decoder_norm/scale': 'decoder.final_layer_norm.weight',
    'decoder/logits_dense/kernel': _HEAD,
}
# Our module -> their sublayer in a block; the last one is 1 or 2. A norm is in
# the sublayer that it precedes, a relative bias in self-attention.
_SUBLAYERS = {
    'attention': '0.SelfAttention',
    'self_attention': '0.SelfAttention',
    'relpos_bias': '0.SelfAttention',
    'pre_attention_layer_norm': '0',
    'pre_self_attention_layer_norm': '0',
    'encoder_decoder_attention': '1.EncDecAttention',
    'pre_cross_attention_layer_norm': '1',
    'mlp': '{last}.DenseReluDense',
    'pre_mlp_layer_norm': '{last}',
}
_LEAVES = {
    'query': 'q',
    'key': 'k',
    'value': 'v',
    'out': 'o',
    'scale': 'layer_norm',
    'rel_embedding': 'relative_attention_bias',
}


def is_checkpoint(folder: epath.Path) -> bool:
  """Whether the folder looks like one of Hugging Face."""
  names = ('config.json', _SINGLE, _INDEX, *_UNREAD)
  return any((folder / name).exists() for name in names)


def read(folder: epath.Path) -> parameters.Checkpoint:
  """The checkpoint in a folder; only headers are read.

  Raises:
    UserError: another architecture or format, a file that is damaged or
      missing, or tensors that do not fit the configuration, all of them named.
  """
  values = _read_config(folder / 'config.json')
  on_disk = _read_tensors(folder)
  kept = _without_copies(folder, on_disk, values['tie_word_embeddings'])
  config = _our_config(
      folder / 'config.json', values, is_tied=_HEAD not in kept
  )
  shapes = parameters.shapes(config)
  expected = {
      their_name(path): shape if path == _EMBEDDING else shape[::-1]
      for path, shape in shapes.items()
  }
  wrong = parameters.mismatches(kept, expected)
  if wrong:
    raise errors.UserError(
        f'The tensors in {folder} do not fit its config.json: {wrong}. Check'
        ' that both are of the same model, or download it again.'
    )
  tensors = {path: _transposed(path, kept[their_name(path)]) for path in shapes}
  ignored = tuple(sorted(set(on_disk) - set(kept)))
  return parameters.Checkpoint(config, tensors, ignored)


def write(
    folder: epath.Path,
    config: config_lib.T5Config,
    tensors: Mapping[str, Tensor],
    shard_bytes: int = _SHARD_BYTES,
) -> None:
  """Writes config.json, generation_config.json and safetensors.

  Args:
    folder: exists and is empty.
    config: of the model.
    tensors: by path, layers not scanned.
    shard_bytes: limit of a file's size; only a single tensor may exceed it.

  Raises:
    UserError: transformers has no such model.
  """
  values = _their_config(config)
  theirs = {
      their_name(path): _transposed(path, tensors[path])
      for path in parameters.shapes(config)
  }
  values['torch_dtype'] = _common_dtype(theirs)
  (folder / 'config.json').write_text(_json(values))
  (folder / 'generation_config.json').write_text(_json(_TOKEN_IDS))
  shards = list(_shards(theirs, shard_bytes))
  if len(shards) == 1:
    safetensors.write(folder / _SINGLE, shards[0])
    return
  file_of = {}
  for number, shard in enumerate(shards, 1):
    file = f'model-{number:05}-of-{len(shards):05}.safetensors'
    safetensors.write(folder / file, shard)
    file_of |= dict.fromkeys(shard, file)
  metadata = {
      'total_parameters': sum(t.size for t in theirs.values()),
      'total_size': sum(t.nbytes for t in theirs.values()),
  }
  index = {'metadata': metadata, 'weight_map': dict(sorted(file_of.items()))}
  (folder / _INDEX).write_text(_json(index))


def their_name(path: str) -> str:
  """Their name of the tensor at our path; layers not scanned.

  decoder/layers_3/mlp/wi_0/kernel is
  decoder.block.3.layer.2.DenseReluDense.wi_0.weight.
  """
  if path in _OUTER:
    return _OUTER[path]
  side, *rest = path.split('/')
  block = '0'  # which keeps a bias that all layers share
  if rest[0].startswith('layers_'):
    block = rest.pop(0).removeprefix('layers_')
  sublayer = _SUBLAYERS[rest[0]].format(last=1 if side == 'encoder' else 2)
  leaf = _LEAVES.get(rest[1], rest[1])
  return f'{side}.block.{block}.layer.{sublayer}.{leaf}.weight'


def _transposed(path: str, tensor: Tensor) -> Tensor:
  """From their layout to ours, or back; of a norm's one axis it is the same."""
  return tensor if path == _EMBEDDING else tensor.T


def _json(values: Mapping[str, Any]) -> str:
  return json.dumps(values, indent=2) + '\n'


def _read_config(path: epath.Path) -> dict[str, Any]:
  """What config.json says, and the defaults where it is silent."""
  if not path.exists():
    raise errors.UserError(
        f'{path} is not there; it says which model the tensors are of. Copy it'
        ' from where they come from.'
    )
  with json_files.parsing(path):
    values = json.loads(sources.read_bytes(path))
    kind = values.get('model_type')
  if kind not in _MODEL_TYPES:
    raise errors.UserError(
        f'{path} says model_type {kind!r}; only the T5 family can be loaded:'
        f' {", ".join(_MODEL_TYPES)}.'
    )
  for name, expected in _TOKEN_IDS.items():
    if values.get(name, expected) not in (expected, None):
      raise errors.UserError(
          f'{path} says {name} {values[name]}; only models where it is'
          f' {expected} can be used, as in all published T5.'
      )
  return {**_DEFAULTS, **values}


def _our_config(
    path: epath.Path, values: dict[str, Any], is_tied: bool
) -> config_lib.T5Config:
  kind = values['model_type']
  default = 'relu' if kind == 't5' else 'gated-gelu'
  feed_forward = values.get('feed_forward_proj', default)
  gated, _, activation = str(feed_forward).rpartition('-')
  if feed_forward == 'gated-gelu':  # only here do they mean the tanh form
    activation = 'gelu_new'
  if activation not in _ACTIVATIONS or gated not in ('', 'gated'):
    raise errors.UserError(
        f'{path} says feed_forward_proj {feed_forward!r}; it must be one of'
        f' {", ".join(_ACTIVATIONS)}, with or without gated- before it.'
    )
  scale = values['tie_word_embeddings'] is not False
  if kind == 't5':
    scale = values.get('scale_decoder_outputs', scale)
  elif kind == 'mt5':
    scale = False
  if values.get('num_decoder_layers') is None:
    values = {**values, 'num_decoder_layers': values.get('num_layers')}
  absent = [name for name in _SIZES.values() if name not in values]
  if absent:
    raise errors.UserError(
        f'{path} lacks {", ".join(absent)}; copy or download it again.'
    )
  wrong = [
      f'{name} {values[name]!r}'
      for name in _SIZES.values()
      if not (type(values[name]) is int and values[name] >= 1)
  ]
  if wrong:
    raise errors.UserError(
        f'{path} says {", ".join(wrong)}; sizes are whole numbers, 1 or more.'
        ' Copy or download it again.'
    )
  activations = [_ACTIVATIONS[activation], *(['linear'] if gated else [])]
  fields = {
      **{ours: values[theirs] for ours, theirs in _FIELDS.items()},
      'mlp_activations': tuple(activations),
      'logits_via_embedding': is_tied,
      'scale_logits': bool(scale),
      'relative_bias_per_layer': kind == 'umt5',
  }
  return parameters.parse_config(fields, path)


def _their_config(config: config_lib.T5Config) -> dict[str, Any]:
  """What config.json says of the model, but for the dtype.

  Raises:
    UserError: transformers has no such model.
  """
  first, *rest = config.mlp_activations
  is_tied, scale = config.logits_via_embedding, config.scale_logits
  is_umt5 = config.relative_bias_per_layer
  reason = None
  if config.shares_encoder:
    reason = "is a draft that reads its target's encoder output"
  elif config.is_decoder_only:
    reason = 'is decoder-only'
  elif config.trimmed_vocabulary is not None:
    reason = f'predicts {config.num_logits} of {config.vocab_size} tokens only'
  elif rest and (first == 'gelu_exact' or rest != ['linear']):
    reason = f'has mlp_activations {config.mlp_activations}'
  elif is_umt5 and is_tied and not scale:
    reason = (
        'has the embedding as its output layer, does not scale logits, and has'
        ' a relative bias in every layer'
    )
  if reason:
    others = 'to=t5x or to=distillspec'
    raise errors.UserError(
        f'The model {reason}; transformers has no such T5. Write it with'
        f' {others if config.is_decoder_only else "to=distillspec"}.'
    )
  activation = {'gelu_exact': 'gelu', 'gelu': 'gelu_new'}.get(first, first)
  if rest:
    activation = 'gated-gelu' if first == 'gelu' else f'gated-{first}'
  kind, architecture = 't5', 'T5ForConditionalGeneration'
  if is_umt5:
    kind, architecture = 'umt5', 'UMT5ForConditionalGeneration'
  values = {
      'architectures': [architecture],
      'model_type': kind,
      'is_encoder_decoder': True,
      'feed_forward_proj': activation,
      'tie_word_embeddings': scale if is_umt5 else is_tied,
      'use_cache': True,
  }
  if not is_umt5:
    values['scale_decoder_outputs'] = scale
  fields = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
  return {**values, **fields, **_TOKEN_IDS}


def _common_dtype(tensors: Mapping[str, Tensor]) -> str:
  """The dtype of most of the elements."""
  sizes: dict[str, int] = {}
  for tensor in tensors.values():
    name = np.dtype(tensor.dtype).name
    sizes[name] = sizes.get(name, 0) + tensor.size
  return max(sizes, key=sizes.get)


def _read_tensors(folder: epath.Path) -> dict[str, Tensor]:
  """Their name -> tensor, of one file or of all shards."""
  if (folder / _SINGLE).exists():
    return safetensors.read(folder / _SINGLE)
  if (folder / _INDEX).exists():
    return _read_shards(folder)
  unread = [name for name in _UNREAD if (folder / name).exists()]
  if not unread:
    raise errors.UserError(
        f'{folder} has no weights: neither {_SINGLE} nor {_INDEX} is there.'
    )
  raise errors.UserError(
      f'{folder} has only {unread[0]}, and reading such files can run any'
      ' program that is hidden in them. Write safetensors once, where'
      " transformers and torch are installed: python -c 'from transformers"
      ' import AutoModelForSeq2SeqLM as M;'
      f' M.from_pretrained("{folder}").save_pretrained("{folder}-safetensors")'
      "' and copy the tokenizer's files to the new folder."
  )


def _read_shards(folder: epath.Path) -> dict[str, Tensor]:
  path = folder / _INDEX
  with json_files.parsing(path):
    file_of = json.loads(sources.read_bytes(path))['weight_map']
    files = sorted({os.fspath(file) for file in file_of.values()})
  # A name with a folder in it could lead anywhere on this machine.
  outside = [
      repr(file)
      for file in files
      if set(file) & set('/\\') or file in ('', '.', '..')
  ]
  if outside:
    raise errors.UserError(
        f'{path} names files that are not in its folder: {", ".join(outside)}.'
        ' Copy or download it again.'
    )
  absent = [file for file in files if not (folder / file).exists()]
  if absent:
    raise errors.UserError(
        f'{path} names files that are not there: {", ".join(absent)}. Copy or'
        ' download them too.'
    )
  shards = {file: safetensors.read(folder / file) for file in files}
  listed = {(file, name) for name, file in file_of.items()}
  on_disk = {(file, name) for file, shard in shards.items() for name in shard}
  wrong = [
      f'{name} is not in {file}' for file, name in sorted(listed - on_disk)
  ]
  wrong += [
      f'{name} in {file} is not listed'
      for file, name in sorted(on_disk - listed)
  ]
  if wrong:
    raise errors.UserError(
        f'{path} does not match its files: {tensors_lib.listed(wrong)}. Copy or'
        ' download all of them again.'
    )
  return {name: shards[file][name] for name, file in file_of.items()}


def _without_copies(
    folder: epath.Path, on_disk: Mapping[str, Tensor], may_be_tied: bool
) -> dict[str, Tensor]:
  """With one embedding, and a head only where it is another tensor.

  Tied weights are one tensor in memory. The names under which it was saved,
  one or several, depend on the version of transformers.
  """
  kept = {name: on_disk[name] for name in on_disk if name != _UNUSED}
  names = [name for name in _EMBEDDINGS if name in kept]
  if not names and may_be_tied and _HEAD in kept:
    names = [_HEAD]
  if not names:
    return kept  # in which the caller will miss it
  shared = kept[names[0]]
  for name in names:
    if not _equal(shared, kept.pop(name)):
      raise errors.UserError(
          f'{names[0]} and {name} in {folder} differ; in a T5 encoder and'
          ' decoder share one embedding.'
      )
  kept[_SHARED] = shared
  if _HEAD in kept and may_be_tied and _equal(shared, kept[_HEAD]):
    del kept[_HEAD]
  return kept


def _equal(a: Tensor, b: Tensor, rows: int = 1024) -> bool:
  """Whether all bytes are equal; reads a few rows at a time."""
  if a is b:
    return True
  if a.shape != b.shape or a.dtype != b.dtype:
    return False
  rest = tuple(slice(0, n) for n in a.shape[1:])
  return all(
      a.read((box, *rest)).tobytes() == b.read((box, *rest)).tobytes()
      for start in range(0, a.shape[0], rows)
      for box in [slice(start, min(start + rows, a.shape[0]))]
  )


def _shards(
    tensors: Mapping[str, Tensor], limit: int
) -> Iterator[dict[str, Tensor]]:
  """The tensors in groups of at most `limit` bytes, in order."""
  shard: dict[str, Tensor] = {}
  used = 0
  for name, tensor in tensors.items():
    if shard and used + tensor.nbytes > limit:
      yield shard
      shard, used = {}, 0
    shard[name] = tensor
    used += tensor.nbytes
  yield shard
