"""Models, pairs, batches and a task of the smallest size, for all tests.

Parameters are drawn with NumPy: `init` compiles a program for every
configuration. They depend on the seed and the parameters' shapes alone, so
that two configurations that differ in something else can be compared.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.checkpoints import tensors
from distillspec_jax.core import types
from distillspec_jax.data import tasks
from distillspec_jax.data import vocabularies
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import int8
from distillspec_jax.models import model as model_lib
from distillspec_jax.models import transformer

V = 40
BYTES = 384  # room for the vocabulary of bytes
KINDS = {'encoder_decoder': {}, 'decoder_only': {'num_encoder_layers': 0}}
WORDS = 'ab cd ef gh ij kl'.split()


def config(vocab_size: int = V, **changes: Any) -> config_lib.T5Config:
  """One layer each of encoder and decoder, unless `changes` say otherwise."""
  encoder = 0 if changes.get('encoded_dim') else 1
  layers = {'num_encoder_layers': encoder, 'num_decoder_layers': 1}
  return config_lib.published('test', vocab_size, **layers | changes)


@functools.cache  # tracing finds the shapes of its parameters, once
def network(of: config_lib.T5Config) -> transformer.Transformer:
  return transformer.Transformer(of)


@functools.cache
def random_params(
    of: config_lib.T5Config, seed: int = 0, gain: float = 1.0
) -> Any:
  """Parameters of about the usual size, none of them 0 or 1.

  Args:
    of: the configuration.
    seed: of the generator.
    gain: size of kernels; larger ones make distributions further from uniform.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'scale':
      values = rng.uniform(0.8, 1.2, leaf.shape)
    else:
      size = gain * leaf.shape[-2] ** -0.5 if name == 'kernel' else 1.0
      values = size * rng.standard_normal(leaf.shape)
    return jnp.asarray(values, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, network(of).abstract())


def model(
    vocab_size: int = V, *, seed: int = 0, gain: float = 1.0, **changes: Any
) -> model_lib.Model:
  """A random model; `changes` are to `config`."""
  of = config(vocab_size, **changes)
  return model_lib.Model(random_params(of, seed, gain), network(of))


# Models made of another one.


def with_noise(params: Any, scale: float, seed: int = 7) -> Any:
  """The parameters with noise of `scale` times each one's own size."""
  rng = np.random.default_rng(seed)

  def add_noise(leaf):
    noise = scale * np.std(leaf) * rng.standard_normal(leaf.shape)
    return jnp.asarray(leaf + noise, jnp.float32)

  return jax.tree.map(add_noise, jax.tree.map(np.asarray, params))


def noisy(
    model: model_lib.Model, scale: float, seed: int = 7
) -> model_lib.Model:
  """A draft that agrees with the model now and then: the same, with noise."""
  return model.replace(params=with_noise(model.params, scale, seed))


def changed(
    model: model_lib.Model, params: Any, **changes: Any
) -> model_lib.Model:
  """Other parameters, and `changes` to the configuration."""
  return model_lib.Model(
      params, network(dataclasses.replace(model.config, **changes))
  )


MASK_DEPTHS = 6


def hidden_at_masks(
    model: model_lib.Model,
    prompt: types.Prompt,
    tokens: jax.Array,
    cut: jax.Array,
) -> jax.Array:
  """Hidden states of tokens int32[B, T] up to place `cut`, and masks after it.

  `cut` is int32[B, 1]. No mask is read: for each depth the vocabulary has a
  token more for every token, whose embedding is that of such a mask.
  """
  table = model.params['token_embedder']['embedding']
  mask, size = table[model.config.mask_token], len(table)
  tables = [
      table + jnp.roll(mask, depth)[None] for depth in range(1, MASK_DEPTHS + 1)
  ]
  embedder = {'embedding': jnp.concatenate([table, *tables])}
  spelled = changed(
      model,
      {**model.params, 'token_embedder': embedder},
      vocab_size=size * (1 + MASK_DEPTHS),
      mask_token=None,
      trimmed_vocabulary=None,
  )
  place = jnp.arange(tokens.shape[1])[None]
  depth = jnp.clip(place - cut, 0, MASK_DEPTHS)
  last = jnp.take_along_axis(tokens, cut, axis=1)
  if model.config.is_decoder_only and prompt.tokens.shape[1]:
    # The start token is in front of the prompt, not after it.
    context = jnp.pad(jnp.asarray(prompt.tokens), ((0, 0), (1, 0)))
    used = jnp.sum(jnp.asarray(prompt.segments) > 0, axis=1, keepdims=True)
    last = jnp.where(cut == 0, jnp.take_along_axis(context, used, 1), last)
  tokens = jnp.where(depth > 0, size * depth + last, tokens)
  return spelled.hidden(prompt, tokens, jnp.ones_like(tokens))


def trimmed(model: model_lib.Model, tokens: tuple[int, ...]) -> model_lib.Model:
  """The model with an output layer for `tokens` only."""
  kernel = model.params['decoder']['logits_dense']['kernel']
  decoder = {
      **model.params['decoder'],
      'logits_dense': {'kernel': kernel[:, np.array(tokens)]},
  }
  params = {**model.params, 'decoder': decoder}
  return changed(model, params, trimmed_vocabulary=tokens)


def sharing(model: model_lib.Model, projection: Any = None) -> model_lib.Model:
  """The model without its encoder; it reads that of another one.

  Args:
    model: with an encoder.
    projection: float[E, D] of the other encoder's output; default: the
      identity, so that with its own encoder's output it is the same model.
  """
  if projection is None:
    projection = np.eye(model.config.emb_dim)
  params = {k: v for k, v in model.params.items() if k != 'encoder'}
  params['encoder_projection'] = {
      'kernel': jnp.asarray(projection, jnp.float32)
  }
  return changed(
      model, params, num_encoder_layers=0, encoded_dim=len(projection)
  )


def quantized(model: model_lib.Model, weights: str = 'int8') -> model_lib.Model:
  """The model held in int8; needs qwix."""
  arrays = {}
  for path, array in tensors.flatten(model.params).items():
    arrays |= int8.quantize(path, array)
  return changed(model, tensors.unflatten(arrays), weights=weights)


# As loaded from folders.


def loaded(
    model: model_lib.Model, name: str = 'model', vocabulary: Any = None
) -> loading.Loaded:
  """As `loading.load` returns it; 'bytes' is a vocabulary, too."""
  if vocabulary == 'bytes':
    vocabulary = vocabularies.load('bytes')
  return loading.Loaded(model, vocabulary, name)


def target(vocab_size: int = V, **changes: Any) -> loading.Loaded:
  return loaded(model(vocab_size, gain=2.0, **changes), 'folder/target')


@functools.cache
def draft(
    vocab_size: int = V, scale: float = 0.3, **changes: Any
) -> loading.Loaded:
  """The target with noise."""
  whole = model(vocab_size, gain=2.0, **changes)
  return loaded(noisy(whole, scale), 'folder/draft')


@functools.cache
def parallel_draft(scale: float = 0.3) -> loading.Loaded:
  """The draft with a mask token, though not trained for it."""
  one = draft(scale=scale)
  return loaded(changed(one.model, one.model.params, mask_token=2), one.name)


@functools.cache
def trimmed_draft() -> loading.Loaded:
  """The draft with an output layer for half of the tokens."""
  whole = noisy(model(gain=2.0), 0.3)
  return loaded(trimmed(whole, (0, 1, *range(3, V, 2))))


def with_vocabulary(loaded: loading.Loaded, vocabulary: Any) -> loading.Loaded:
  return dataclasses.replace(loaded, vocabulary=vocabulary)


def save(
    folder: Any, model: model_lib.Model, vocabulary: Any = None, step: int = 0
):
  """The model's folder, which is returned; 'bytes' is a vocabulary, too."""
  if vocabulary == 'bytes':
    vocabulary = vocabularies.load('bytes')
  also = lambda path: vocabularies.save(vocabulary, path)
  model_folder.save_model(
      folder,
      model.config.to_dict(),
      model.params,
      step=step,
      **({} if vocabulary is None else {'also': also}),
  )
  return folder


# What models are called with.


def batch(
    rows: int, empty: int = 0, seed: int = 0, inputs: int = 5, labels: int = 4
) -> types.Batch:
  """Random tokens of several lengths; the last `empty` rows are padding."""
  rng = np.random.default_rng(seed)
  used = (np.arange(rows) < rows - empty)[:, None]

  def tokens_of(size):
    lengths = rng.integers(1, size + 1, (rows, 1))
    segments = ((np.arange(size)[None] < lengths) & used).astype(np.int32)
    tokens = rng.integers(2, V, (rows, size)).astype(np.int32) * segments
    return tokens, segments

  (tokens, input_segments), (label_tokens, segments) = map(
      tokens_of, (inputs, labels)
  )
  return types.Batch(
      tokens, input_segments, label_tokens, segments, segments > 0
  )


def task(
    folder: Any,
    name: str = 'tiny',
    train: int = 48,
    validation: int = 6,
    **changes: Any,
) -> tasks.Task:
  """Parallel text in bytes; labels are the inputs' words, doubled."""
  folder.mkdir(parents=True, exist_ok=True)
  files = {}
  for split, count in (('train', train), ('validation', validation)):
    lines = [f'{WORDS[i % 6]} {WORDS[i // 6 % 6]}' for i in range(count)]
    doubled = [' '.join(word * 2 for word in line.split()) for line in lines]
    files[split] = (f'{folder}/{split}.in', f'{folder}/{split}.out')
    for path, texts in zip(files[split], (lines, doubled)):
      with open(path, 'w') as file:
        file.write('\n'.join(texts) + '\n')
  return tasks.parallel_text(
      **files,
      name=name,
      **{
          'vocabulary': 'bytes',
          'input_length': 8,
          'label_length': 12,
          **changes,
      },
  )
