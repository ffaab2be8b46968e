"""A pair of published sizes that agrees at a chosen rate, without training.

What speculation gains depends on how often the draft predicts what the target
does, and random weights never agree. Here all layers are random and all are
computed, but two matrices are set so that the last token decides: embeddings
are so large that the decoder's last state points where the last token's
embedding does, and the output layer's column of token next(v) points where the
embedding of v does. So p(next(v) | ... v) is a chosen number near 1, and the
rest is spread at random. The target's `next` is one long cycle over all tokens
but padding and EOS; the draft's differs from it for a share of tokens. Only the
start token's embedding is small, so that the first token depends on the input,
and each input starts at a place of its own.

Run as a script it measures the acceptance of such a pair, or writes it to the
folders target/ and draft/ of --out, for commands that take folders.

    python benchmarks/controlled_pair.py [--target=base] [--draft=small]
        [--agreement=0.8] [--certainty=0.95] [--out=FOLDER]
"""

import argparse
import math
import pathlib

import comparison
import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import model_folder
from distillspec_jax.core import randomness
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import speculative

SPECIAL = 2  # padding and EOS, which are never emitted
# Root mean square of embeddings. A layer adds about 1 to a random network's
# state, 36 sublayers about 6: the cosine with the embedding stays above 0.99.
SCALE = 100.0
START_SCALE = 0.01
# What attention to the input is multiplied by; it averages over many tokens,
# which makes it small in a random network.
CROSS_SCALE = 8.0


def successors(
    vocab_size: int, agreement: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """int[V - 2] twice: what target and draft predict after token 2 + i.

  The target's is one cycle. The draft's is a permutation, too, and differs at
  a share 1 - agreement of tokens, chosen at random.
  """
  rng = np.random.default_rng(seed)
  size = vocab_size - SPECIAL
  cycle = SPECIAL + rng.permutation(size)
  target = np.zeros(size, np.int64)
  target[cycle - SPECIAL] = np.roll(cycle, -1)
  draft = target.copy()
  other = rng.permutation(size)[: round((1.0 - agreement) * size)]
  draft[other] = target[np.roll(other, 1)]
  return target, draft


def sharpness(vocab_size: int, emb_dim: int, certainty: float) -> float:
  """The logit of the likely token that gives it probability `certainty`.

  The others are normal with variance logit^2 / D, and their weights add up to
  V exp(variance / 2) on average.
  """
  logit = 0.0
  for _ in range(50):  # a contraction for logit < D
    logit = (
        math.log(certainty / (1.0 - certainty))
        + math.log(vocab_size)
        + logit**2 / emb_dim / 2
    )
  return logit


def build(
    config: config_lib.T5Config,
    following: np.ndarray,
    certainty: float,
    seed: int,
) -> model_lib.Model:
  """A model that predicts following[v - 2] after v.

  Args:
    config: with an output layer of its own (T5 v1.1).
    following: int[V - 2], see `successors`.
    certainty: probability of that token at temperature 1.
    seed: of all that is random.
  """
  model = comparison.random_model(config, seed)
  params = model.params
  rng = np.random.default_rng(seed)
  size, width = config.vocab_size, config.emb_dim
  embedding = rng.standard_normal((size, width), np.float32)
  embedding /= np.sqrt(np.mean(embedding**2, axis=1, keepdims=True))
  columns = np.zeros((size, width), np.float32)
  logit = sharpness(size, width, certainty)
  columns[following] = embedding[SPECIAL:] * (logit / width)
  embedding *= SCALE
  embedding[0] *= START_SCALE / SCALE
  params['token_embedder']['embedding'] = jnp.asarray(embedding)
  params['decoder']['logits_dense']['kernel'] = jnp.asarray(columns.T)
  for i in range(config.num_decoder_layers):
    attention = params['decoder'][f'layers_{i}']['encoder_decoder_attention']
    attention['out']['kernel'] *= CROSS_SCALE
  return model


def pair(
    target: config_lib.T5Config,
    draft: config_lib.T5Config,
    agreement: float = 0.8,
    certainty: float = 0.95,
    seed: int = 0,
) -> tuple[model_lib.Model, model_lib.Model]:
  """Target and draft; see the module."""
  following, drafted = successors(target.vocab_size, agreement, seed)
  return (
      build(target, following, certainty, 2 * seed + 1),
      build(draft, drafted, certainty, 2 * seed + 2),
  )


def acceptance(
    target: model_lib.Model,
    draft: model_lib.Model,
    inputs: np.ndarray,
    decoding: decoding_lib.Decoding,
) -> float:
  """Accepted over judged tokens of one speculative call."""
  keys = randomness.row_keys(jax.random.key(0), len(inputs))
  samples = speculative.generate(
      target, draft, comparison.prompt(inputs), keys, decoding
  )
  return float(samples.statistics.acceptance_rate)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--target', default='base')
  parser.add_argument('--draft', default='small')
  parser.add_argument('--agreement', type=float, default=0.8)
  parser.add_argument('--certainty', type=float, default=0.95)
  parser.add_argument('--rows', type=int, default=32)
  parser.add_argument('--out', type=pathlib.Path)
  options = parser.parse_args()
  configs = map(comparison.published, (options.target, options.draft))
  models = pair(*configs, options.agreement, options.certainty)
  if options.out:
    for name, model in zip(('target', 'draft'), models):
      config = model.config.to_dict()
      model_folder.save_model(options.out / name, config, model.params, step=0)
      print(options.out / name)
    return
  (inputs,) = comparison.random_inputs(0, options.rows, 64)
  decoding = decoding_lib.Decoding(max_new_tokens=64)
  for name, temperature in (('greedy', 0.0), ('sampled', 1.0)):
    decoding = decoding.replace(temperature=temperature)
    rate = acceptance(*models, inputs, decoding)
    print(f'{name:8} acceptance {rate:.3f} over {options.rows} inputs')


if __name__ == '__main__':
  main()
