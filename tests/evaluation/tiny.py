"""A pair, inputs and a task of the smallest size, for this folder's tests."""

import dataclasses
import functools

import jax
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import types
from distillspec_jax.data import tasks
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer

V = 40
WORDS = 'ab cd ef gh ij kl'.split()


@functools.cache
def target(vocabulary_size=V, **changes):
  """A random model, quicker than `init`; its kernels are twice as large."""
  config = config_lib.published(
      'test',
      vocabulary_size,
      **{'num_encoder_layers': 1, 'num_decoder_layers': 1, **changes},
  )
  model = transformer.Transformer(config)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'scale':
      return np.ones(leaf.shape, np.float32)
    deviation = 2 * leaf.shape[0] ** -0.5 if name == 'kernel' else 1.0
    return (deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

  params = jax.tree_util.tree_map_with_path(draw, model.abstract())
  return loading.Model(model, params, None, 'folder/target')


@functools.cache
def draft(vocabulary_size=V, scale=0.3, **changes):
  """The target with noise of `scale` times each parameter's own size."""
  model = target(vocabulary_size, **changes)
  rng = np.random.default_rng(7)
  params = jax.tree.map(
      lambda x: x
      + np.float32(scale * np.std(x))
      * rng.standard_normal(x.shape).astype(np.float32),
      model.params,
  )
  return loading.Model(model.transformer, params, None, 'folder/draft')


@functools.cache
def cut_draft():
  """The draft with an output layer for half of the tokens."""
  whole = draft()
  tokens = (0, 1, *range(3, V, 2))
  config = dataclasses.replace(whole.config, output_tokens=tokens)
  decoder = dict(whole.params['decoder'])
  kernel = decoder['logits_dense']['kernel'][:, list(tokens)]
  decoder['logits_dense'] = {'kernel': kernel}
  return loading.Model(
      transformer.Transformer(config), {**whole.params, 'decoder': decoder}
  )


def with_vocabulary(model, vocabulary):
  return loading.Model(model.transformer, model.params, vocabulary, model.name)


def batch(rows, empty=0, seed=0, inputs=5, labels=4):
  """Random inputs of several lengths; the last `empty` rows are padding."""
  rng = np.random.default_rng(seed)
  used = (np.arange(rows) < rows - empty)[:, None]

  def some(size):
    lengths = rng.integers(1, size + 1, (rows, 1))
    segments = ((np.arange(size)[None] < lengths) & used).astype(np.int32)
    tokens = rng.integers(2, V, (rows, size)).astype(np.int32) * segments
    return tokens, segments

  (tokens, input_segments), (said, segments) = some(inputs), some(labels)
  return types.Batch(tokens, input_segments, said, segments, segments > 0)


def task(folder, name='tiny', validation=6, **changes):
  """Parallel text in bytes; labels are the inputs' words, doubled."""
  folder.mkdir(parents=True, exist_ok=True)
  for split, count in (('train', 4), ('validation', validation)):
    lines = [f'{WORDS[i % 6]} {WORDS[i // 6 % 6]}' for i in range(count)]
    doubled = [' '.join(word * 2 for word in line.split()) for line in lines]
    (folder / f'{split}.in').write_text('\n'.join(lines) + '\n')
    (folder / f'{split}.out').write_text('\n'.join(doubled) + '\n')

  def pair(split):
    return str(folder / f'{split}.in'), str(folder / f'{split}.out')

  return tasks.parallel_text(
      train=pair('train'),
      validation=pair('validation'),
      name=name,
      vocabulary='bytes',
      **{'input_length': 8, 'label_length': 12, **changes},
  )
