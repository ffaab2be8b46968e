"""A pair of published sizes that agrees as often as one says, without training.

What speculation gains depends on how often the draft says what the target
says, and random weights never do. Here all layers are random and all are
computed, but two matrices are made so that the last token decides: embeddings
are so large that the decoder's last state points where the last token's
embedding does, and the output layer's column of token next(v) points where the
embedding of v does. So p(next(v) | ... v) is a chosen number near 1, and the
rest is spread by chance. The target's `next` is one long cycle over all tokens
but padding and EOS; the draft's differs from it for a share of tokens. Start
tokens alone are small, so that the first token depends on the input, and each
input starts at a place of its own.

Run as a script it makes such a pair and measures its acceptance, or writes it
to the folders target/ and draft/ of --out, for commands that take folders.

    python benchmarks/controlled_pair.py [--target=base] [--draft=small]
        [--agreement=0.8] [--certainty=0.95] [--out=FOLDER]
"""

import argparse
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import model_folder
from distillspec_jax.core import randomness
from distillspec_jax.evaluation import pair as pair_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import decoding as decoding_lib

SPECIAL = 2  # padding and EOS, which are never said
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
  """int[V - 2] twice: what the target and the draft say after token 2 + i.

  The target's is one cycle. The draft's is a permutation, too, and differs at
  a share 1 - agreement of tokens, chosen by chance.
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
):
  """Parameters of a model that says following[v - 2] after v.

  Args:
    config: with an output layer of its own (T5 v1.1).
    following: int[V - 2], see `successors`.
    certainty: probability of that token at temperature 1.
    seed: of all that is left to chance.
  """
  params = transformer_lib.Transformer(config).init(jax.random.key(seed))
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
  return params


def pair(
    target: config_lib.T5Config,
    draft: config_lib.T5Config,
    agreement: float = 0.8,
    certainty: float = 0.95,
    seed: int = 0,
):
  """Parameters of both, see the head of this file."""
  following, drafted = successors(target.vocab_size, agreement, seed)
  return (
      build(target, following, certainty, 2 * seed + 1),
      build(draft, drafted, certainty, 2 * seed + 2),
  )


def acceptance(target, draft, inputs, decoding) -> float:
  """Accepted over judged tokens of one speculative call."""
  tokens = jnp.asarray(inputs, jnp.int32)
  keys = randomness.row_keys(jax.random.key(0), len(inputs))
  samples = pair_lib.answer(
      target, draft, tokens, jnp.ones_like(tokens), keys, decoding
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
  configs = [
      config_lib.published(f't5_1_1_{size}')
      for size in (options.target, options.draft)
  ]
  params = pair(*configs, options.agreement, options.certainty)
  if options.out:
    for name, config, made in zip(('target', 'draft'), configs, params):
      model_folder.save_model(
          options.out / name, config.to_dict(), made, step=0
      )
      print(options.out / name)
    return
  models = [
      loading.Model(transformer_lib.Transformer(config), made)
      for config, made in zip(configs, params)
  ]
  rng = np.random.default_rng(0)
  inputs = rng.integers(SPECIAL, 32000, (options.rows, 64))
  for name, temperature in (('greedy', 0.0), ('sampled', 1.0)):
    decoding = decoding_lib.Decoding(
        temperature=temperature, max_new_tokens=64, block_length=5
    )
    found = acceptance(*models, inputs, decoding)
    print(f'{name:8} acceptance {found:.3f} over {options.rows} inputs')


if __name__ == '__main__':
  main()
