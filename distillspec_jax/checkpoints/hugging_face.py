"""Hugging Face folders of T5, T5 v1.1, Flan-T5, ByT5, mT5 and umT5, in and out.

config.json, and safetensors in one file or in shards with an index. Linear
layers lie there as [out, in], here as [in, out]; the transposition is a view.

Two facts of a model are not where one would look for them. Whether the output
layer is the embedding follows from the tensors: newer versions of transformers
write `tie_word_embeddings: true` into every config. Whether logits are scaled
by D**-0.5 follows from `scale_decoder_outputs`, and where that is absent, from
`tie_word_embeddings` as older versions wrote it; mT5's are not scaled. umT5's
follow `tie_word_embeddings`, as in transformers 4; version 5 scales them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import json
import os
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from distillspec_jax.checkpoints import safetensors
from distillspec_jax.checkpoints import tensors as tensors_lib
from distillspec_jax.checkpoints.tensors import Tensor
from distillspec_jax.core import errors

_WHOLE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
# Files of other formats, most of which run code when they are read.
_UNREAD = (
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
    'tf_model.h5',
    'flax_model.msgpack',
)
_SHARD_BYTES = 5_000_000_000
_REQUIRED = ('vocab_size', 'd_model', 'd_kv', 'd_ff', 'num_layers', 'num_heads')
_SIZES = (
    *_REQUIRED,
    'num_decoder_layers',
    'relative_attention_num_buckets',
    'relative_attention_max_distance',
)
_MODEL_TYPES = ('t5', 'mt5', 'umt5')

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
_ATTENTION = {'q': 'query', 'k': 'key', 'v': 'value', 'o': 'out'}


class Place(NamedTuple):
  """Where one of their tensors goes."""

  path: str
  is_transposed: bool


def is_one(folder: epath.Path) -> bool:
  """Whether the folder looks like Hugging Face's."""
  names = ('config.json', _WHOLE, _INDEX, *_UNREAD)
  return any((folder / name).exists() for name in names)


def read(folder: epath.Path) -> tensors_lib.Checkpoint:
  """The checkpoint in a folder, of which only headers are read.

  Raises:
    UserError: another architecture or format, a file that is damaged or
      missing, or tensors that do not fit the configuration, all of them named.
  """
  values = _read_config(folder)
  on_disk = _read_tensors(folder)
  found = _without_copies(folder, on_disk, values['tie_word_embeddings'])
  config = _our_config(folder, values, is_tied=_HEAD not in found)
  places = names(config)
  wanted = {name: _shape(config, name) for name in places}
  wrong = tensors_lib.mismatches(found, wanted)
  if wrong:
    raise errors.UserError(
        f'The tensors in {folder} do not fit its config.json: {wrong}. Check'
        ' that both are of the same model, or download it again.'
    )
  tensors = {}
  for name, place in places.items():
    tensor = found[name]
    tensors[place.path] = tensor.T if place.is_transposed else tensor
  left_aside = tuple(sorted(set(on_disk) - set(found)))
  return tensors_lib.Checkpoint(config, tensors, left_aside)


def write(
    folder: epath.Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    shard_bytes: int = _SHARD_BYTES,
) -> None:
  """Writes config.json, generation_config.json and safetensors.

  Args:
    folder: is there and empty.
    config: fields of `T5Config`.
    tensors: by path, layers not scanned.
    shard_bytes: a file has no more, unless one tensor alone has.

  Raises:
    UserError: transformers has no such model.
  """
  if config.get('encoded_dim'):
    raise errors.UserError(
        "The model is a draft that reads its target's encoder output;"
        ' transformers has no such T5. Write it with to=distillspec.'
    )
  if not config['num_encoder_layers']:
    raise errors.UserError(
        'The model is decoder-only; transformers has no such T5. Write it with'
        ' to=t5x or to=distillspec.'
    )
  values = _their_config(config)
  theirs = {}
  for name, place in names(config).items():
    tensor = tensors[place.path]
    theirs[name] = tensor.T if place.is_transposed else tensor
  values['torch_dtype'] = _common_dtype(theirs)
  text = json.dumps(values, indent=2) + '\n'
  (folder / 'config.json').write_text(text)
  ids = {'decoder_start_token_id': 0, 'eos_token_id': 1, 'pad_token_id': 0}
  text = json.dumps(ids, indent=2) + '\n'
  (folder / 'generation_config.json').write_text(text)
  shards = list(_shards(theirs, shard_bytes))
  if len(shards) == 1:
    safetensors.write(folder / _WHOLE, shards[0])
    return
  places = {}
  for number, shard in enumerate(shards, 1):
    file = f'model-{number:05}-of-{len(shards):05}.safetensors'
    safetensors.write(folder / file, shard)
    places |= dict.fromkeys(shard, file)
  index = {
      'metadata': {
          'total_parameters': sum(t.size for t in theirs.values()),
          'total_size': sum(t.nbytes for t in theirs.values()),
      },
      'weight_map': dict(sorted(places.items())),
  }
  (folder / _INDEX).write_text(json.dumps(index, indent=2) + '\n')


def names(config: Mapping[str, Any]) -> dict[str, Place]:
  """Their name -> place, of all tensors of a model.

  Args:
    config: fields of `T5Config`; `scan_layers` is left out of account.
  """
  table = {_SHARED: Place('token_embedder/embedding', False)}
  for side in ('encoder', 'decoder'):
    is_decoder = side == 'decoder'
    for i in range(config[f'num_{side}_layers']):
      theirs, ours = f'{side}.block.{i}.layer', f'{side}/layers_{i}'
      blocks = [('SelfAttention', 'attention', 'pre')]
      if is_decoder:
        blocks = [
            ('SelfAttention', 'self_attention', 'pre_self'),
            ('EncDecAttention', 'encoder_decoder_attention', 'pre_cross'),
        ]
      for number, (block, name, norm) in enumerate(blocks):
        for letter, kernel in _ATTENTION.items():
          table[f'{theirs}.{number}.{block}.{letter}.weight'] = Place(
              f'{ours}/{name}/{kernel}/kernel', True
          )
        table[f'{theirs}.{number}.layer_norm.weight'] = Place(
            f'{ours}/{norm}_attention_layer_norm/scale', False
        )
      bias = f'{theirs}.0.SelfAttention.relative_attention_bias.weight'
      if config['relative_bias_per_layer']:
        table[bias] = Place(f'{ours}/relpos_bias/rel_embedding', True)
      elif i == 0:
        table[bias] = Place(f'{side}/relpos_bias/rel_embedding', True)
      last = f'{theirs}.{len(blocks)}'
      for kernel in (*_branches(config), 'wo'):
        table[f'{last}.DenseReluDense.{kernel}.weight'] = Place(
            f'{ours}/mlp/{kernel}/kernel', True
        )
      table[f'{last}.layer_norm.weight'] = Place(
          f'{ours}/pre_mlp_layer_norm/scale', False
      )
    table[f'{side}.final_layer_norm.weight'] = Place(
        f'{side}/{side}_norm/scale', False
    )
  if not config['logits_via_embedding']:
    table[_HEAD] = Place('decoder/logits_dense/kernel', True)
  return table


def _branches(config: Mapping[str, Any]) -> list[str]:
  count = len(config['mlp_activations'])
  return ['wi'] if count == 1 else [f'wi_{i}' for i in range(count)]


def _shape(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
  """The shape of the tensor that is called `name`, as it lies on disk."""
  width, joined = config['emb_dim'], config['num_heads'] * config['head_dim']
  layer = name.split('.')[-2]
  return {
      'shared': (config['vocab_size'], width),
      'lm_head': (config['vocab_size'], width),
      'relative_attention_bias': (
          config['relative_buckets'],
          config['num_heads'],
      ),
      'layer_norm': (width,),
      'final_layer_norm': (width,),
      **dict.fromkeys('qkv', (joined, width)),
      'o': (width, joined),
      **dict.fromkeys(_branches(config), (config['mlp_dim'], width)),
      'wo': (width, config['mlp_dim']),
  }[layer]


def _read_config(folder: epath.Path) -> dict[str, Any]:
  path = folder / 'config.json'
  if not path.exists():
    raise errors.UserError(
        f'{path} is not there; it says what model the tensors are of. Copy it'
        ' from where they come from.'
    )
  try:
    values = json.loads(path.read_text())
    values.get('model_type')
  except (ValueError, AttributeError, RecursionError) as error:
    raise errors.UserError(
        f'{path} is not a JSON object ({error}); copy or download it again.'
    ) from error
  kind = values.get('model_type')
  if kind not in _MODEL_TYPES:
    raise errors.UserError(
        f'{path} says model_type {kind!r}; only the T5 family can be loaded:'
        f' {", ".join(_MODEL_TYPES)}.'
    )
  ids = {'pad_token_id': 0, 'eos_token_id': 1, 'decoder_start_token_id': 0}
  for name, wanted in ids.items():
    if values.get(name, wanted) not in (wanted, None):
      raise errors.UserError(
          f'{path} says {name} {values[name]}; only models where it is'
          f' {wanted} can be used, as in all published T5.'
      )
  return {'tie_word_embeddings': True, **values}


def _our_config(
    folder: epath.Path, values: Mapping[str, Any], is_tied: bool
) -> dict[str, Any]:
  """Fields of `T5Config`."""
  path = folder / 'config.json'
  is_umt5 = values['model_type'] == 'umt5'
  default = 'relu' if values['model_type'] == 't5' else 'gated-gelu'
  feed_forward = values.get('feed_forward_proj', default)
  gated, _, activation = str(feed_forward).rpartition('-')
  if feed_forward == 'gated-gelu':  # theirs means the tanh form here alone
    activation = 'gelu_new'
  if activation not in _ACTIVATIONS or gated not in ('', 'gated'):
    raise errors.UserError(
        f'{path} says feed_forward_proj {feed_forward!r}; it must be one of'
        f' {", ".join(_ACTIVATIONS)}, with or without gated- before it.'
    )
  activations = [_ACTIVATIONS[activation]] + (['linear'] if gated else [])
  scale = values['tie_word_embeddings'] is not False
  if values['model_type'] == 't5':
    scale = values.get('scale_decoder_outputs', scale)
  elif values['model_type'] == 'mt5':
    scale = False
  absent = [name for name in _REQUIRED if name not in values]
  if absent:
    raise errors.UserError(
        f'{path} lacks {", ".join(absent)}; copy or download it again.'
    )
  layers = values['num_layers']
  if values.get('num_decoder_layers') is None:
    values = {**values, 'num_decoder_layers': layers}
  wrong = [
      f'{name} {values[name]!r}'
      for name in _SIZES
      if name in values
      and not (type(values[name]) is int and values[name] >= 1)
  ]
  if wrong:
    raise errors.UserError(
        f'{path} says {", ".join(wrong)}; sizes are whole numbers, 1 or more.'
        ' Copy or download it again.'
    )
  return {
      'vocab_size': values['vocab_size'],
      'emb_dim': values['d_model'],
      'num_heads': values['num_heads'],
      'head_dim': values['d_kv'],
      'mlp_dim': values['d_ff'],
      'num_encoder_layers': layers,
      'num_decoder_layers': values['num_decoder_layers'],
      'mlp_activations': tuple(activations),
      'logits_via_embedding': is_tied,
      'scale_logits': bool(scale),
      'norm_epsilon': values.get('layer_norm_epsilon', 1e-6),
      'dropout_rate': values.get('dropout_rate', 0.1),
      'relative_buckets': values.get('relative_attention_num_buckets', 32),
      'relative_max_distance': values.get(
          'relative_attention_max_distance', 128
      ),
      'relative_bias_per_layer': is_umt5,
  }  # fmt: skip


def _their_config(config: Mapping[str, Any]) -> dict[str, Any]:
  first, *rest = config['mlp_activations']
  theirs = {'gelu_exact': 'gelu', 'gelu': 'gelu_new'}
  feed_forward = theirs.get(first, first)
  if list(rest) == ['linear']:
    feed_forward = 'gated-gelu' if first == 'gelu' else f'gated-{first}'
  if rest and (first == 'gelu_exact' or rest != ['linear']):
    raise errors.UserError(
        f'mlp_activations {tuple(config["mlp_activations"])} cannot be said in'
        ' a config.json of transformers. Write it with to=t5x or'
        ' to=distillspec.'
    )
  is_tied, scale = config['logits_via_embedding'], config['scale_logits']
  per_layer = config['relative_bias_per_layer']
  if per_layer and is_tied and not scale:
    raise errors.UserError(
        'Logits are made by the embedding and not scaled, and every layer has a'
        ' relative bias of its own; transformers has no such T5. Write it with'
        ' to=distillspec.'
    )
  kind, architecture = 't5', 'T5ForConditionalGeneration'
  if per_layer:
    kind, architecture = 'umt5', 'UMT5ForConditionalGeneration'
  values = {
      'architectures': [architecture],
      'model_type': kind,
      'is_encoder_decoder': True,
      'vocab_size': config['vocab_size'],
      'd_model': config['emb_dim'],
      'd_kv': config['head_dim'],
      'd_ff': config['mlp_dim'],
      'num_heads': config['num_heads'],
      'num_layers': config['num_encoder_layers'],
      'num_decoder_layers': config['num_decoder_layers'],
      'feed_forward_proj': feed_forward,
      'layer_norm_epsilon': config['norm_epsilon'],
      'dropout_rate': config['dropout_rate'],
      'relative_attention_num_buckets': config['relative_buckets'],
      'relative_attention_max_distance': config['relative_max_distance'],
      'tie_word_embeddings': scale if per_layer else is_tied,
      'scale_decoder_outputs': scale,
      'pad_token_id': 0,
      'eos_token_id': 1,
      'decoder_start_token_id': 0,
      'use_cache': True,
  }
  if per_layer:
    del values['scale_decoder_outputs']
  return values


def _common_dtype(tensors: Mapping[str, Tensor]) -> str:
  """Of most of the elements."""
  sizes: dict[str, int] = {}
  for tensor in tensors.values():
    name = np.dtype(tensor.dtype).name
    sizes[name] = sizes.get(name, 0) + tensor.size
  return max(sizes, key=sizes.get)


def _read_tensors(folder: epath.Path) -> dict[str, Tensor]:
  """Their name -> tensor, of one file or of all shards."""
  if (folder / _WHOLE).exists():
    return safetensors.read(folder / _WHOLE)
  if (folder / _INDEX).exists():
    return _read_shards(folder)
  unread = [name for name in _UNREAD if (folder / name).exists()]
  if not unread:
    raise errors.UserError(
        f'{folder} has no weights: neither {_WHOLE} nor {_INDEX} is there.'
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
  try:
    places = json.loads(path.read_text())['weight_map']
    files = sorted({os.fspath(file) for file in places.values()})
  except (
      ValueError, KeyError, TypeError, AttributeError, RecursionError,
  ) as error:  # fmt: skip
    raise errors.UserError(
        f'{path} is damaged ({error!r}); copy or download it again.'
    ) from error
  outside = [
      file
      for file in files
      if '/' in file or '\\' in file or file in ('', '.', '..')
  ]
  if outside:
    raise errors.UserError(
        f'{path} names what are no files of its folder:'
        f' {", ".join(map(repr, outside))}. Copy or download it again.'
    )
  absent = [file for file in files if not (folder / file).exists()]
  if absent:
    raise errors.UserError(
        f'{path} names files that are not there: {", ".join(absent)}. Copy or'
        ' download them too.'
    )
  found = {file: safetensors.read(folder / file) for file in files}
  lost = sorted(
      name for name, file in places.items() if name not in found[file]
  )
  if lost:
    raise errors.UserError(
        f'{path} says where tensors are that are not there:'
        f' {", ".join(lost)}. Copy or download the shards again.'
    )
  unlisted = sorted(
      f'{name} in {file}'
      for file, tensors in found.items()
      for name in tensors
      if places.get(name) != file
  )
  if unlisted:
    raise errors.UserError(
        f'{path} does not list {", ".join(unlisted)}; the shards are of another'
        ' model. Copy or download them again.'
    )
  return {name: found[file][name] for name, file in places.items()}


def _without_copies(
    folder: epath.Path, found: dict[str, Tensor], may_be_tied: bool
) -> dict[str, Tensor]:
  """One embedding under its own name, and a head only where it is another."""
  found = {name: found[name] for name in found if name != _UNUSED}
  present = [name for name in _EMBEDDINGS if name in found]
  if not present and may_be_tied and _HEAD in found:
    present = [_HEAD]  # which of the equal names is kept is left to chance
  if not present:
    return found
  shared = found[present[0]]
  for name in present[1:]:
    if not _equal(shared, found.pop(name)):
      raise errors.UserError(
          f'{present[0]} and {name} in {folder} differ; in a T5 encoder and'
          ' decoder share one embedding.'
      )
  if present[0] != _SHARED:
    del found[present[0]]
    found[_SHARED] = shared
  if _HEAD in found and may_be_tied and _equal(shared, found[_HEAD]):
    del found[_HEAD]
  return found


def _equal(a: Tensor, b: Tensor, rows: int = 1024) -> bool:
  """Whether all bytes are the same; stops at the first that is not."""
  if a.shape != b.shape or a.dtype != b.dtype:
    return False
  for start in range(0, a.shape[0], rows):
    box = (
        slice(start, min(start + rows, a.shape[0])),
        *(slice(0, n) for n in a.shape[1:]),
    )
    if a.read(box).tobytes() != b.read(box).tobytes():
      return False
  return True


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
