"""`ds.generate`: texts or tokens in, texts and tokens out."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import requests as requests_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import stopping

_EOS = 1


@dataclasses.dataclass(frozen=True)
class Generation:
  """What was generated.

  Attributes:
    text: one string a row, the prefix included, up to a stop string; empty
      where the target has no vocabulary.
    tokens: int32[B, L] new tokens, 0 after the last; it is EOS, completes a
      stop string, or fills the row.
    lengths: int32[B].
    origins: int8[B, L], a `samples.Origin` a token.
    statistics: counts a row, with `acceptance_rate` and `block_efficiency`.
    log_probs: float32[B, L] nats, of each token under the target's own
      distribution (temperature 1, not warped); None unless asked for.
  """

  text: list[str]
  tokens: np.ndarray
  lengths: np.ndarray
  origins: np.ndarray
  statistics: samples_lib.Statistics
  log_probs: np.ndarray | None


def generate(
    target: loading.Model,
    inputs: Sequence[str] | np.ndarray | jax.Array,
    *,
    draft: loading.Model | None = None,
    max_new_tokens: int | Sequence[int] = 128,
    min_new_tokens: int | Sequence[int] = 0,
    block_length: int = 5,
    num_drafts: int = 1,
    draft_stop: tuple | None = None,
    temperature: float | Sequence[float] = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    verification: str = 'token',
    lenience: tuple | None = None,
    stop: str | Sequence[str] = (),
    eos_ids: Sequence[int] = (_EOS,),
    prefix: str | Sequence[str] | Sequence[Sequence[int]] | None = None,
    log_probs: bool = False,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
) -> Generation:
  """Answers of the target, faster where a draft is given.

  The answers have the target's distribution with a draft and without; greedy
  (temperature 0) they are the same tokens. (Not so with `lenience`.) What may
  be a sequence has one value a row.

  Args:
    target: the model that decides.
    inputs: strings, or int32[B, S] padded with 0.
    draft: the model that proposes; None decodes autoregressively.
    max_new_tokens: length of an answer at most, EOS included.
    min_new_tokens: tokens before EOS may come.
    block_length: tokens drafted before each call of the target.
    num_drafts: blocks drafted side by side, of which the target goes along with
      the one that it accepts farthest; see `multi_draft`.
    draft_stop: None, or when the draft stops earlier: ('confidence', c) after a
      place where it gave no token more than c, ('entropy', h) after one where
      its entropy was above h nats.
    temperature: 0 is greedy.
    top_k: only the k most likely tokens; 0 allows all.
    top_p: only the most likely tokens that reach this probability together.
    verification: 'token', or 'block', which accepts no fewer tokens.
    lenience: None is lossless; otherwise more is accepted: (function, epsilon)
      with 'linear', 'square' or 'exponential' and epsilon in (0, 1], or
      ('typical', epsilon, delta); see `lossy`.
    stop: strings that end an answer, wherever its pieces are cut; the text ends
      before them.
    eos_ids: tokens that end an answer; () lets none end early.
    prefix: what every answer begins with: one text, one a row, or tokens.
    log_probs: whether to return the log-probabilities of the new tokens.
    seed: row i draws from the stream (seed, i), whatever the batch; with one
      seed a row, from (seed[i], 0). In [0, 2**32).
    batch_size: rows decoded together. Texts of similar length are, so that a
      short one is not padded to a long one.

  Raises:
    UserError: models that do not fit, settings out of range, no inputs, or
      strings for a model without a vocabulary.
    Failed: logits were not finite.
  """
  tokens, segments, batches = batched(target, inputs, batch_size)
  requests = requests_lib.check(
      target,
      len(tokens),
      max_new_tokens=max_new_tokens,
      min_new_tokens=min_new_tokens,
      temperature=temperature,
      seed=seed,
      prefix=prefix,
      stop=stop,
  )
  longest = requests.longest
  decoding = decoding_lib.Decoding(
      temperature=requests.temperature if np.ndim(temperature) == 0 else 1.0,
      top_k=top_k,
      top_p=top_p,
      # Without a draft it has no effect.
      block_length=min(block_length, longest)
      if draft is None
      else block_length,
      num_drafts=num_drafts,
      draft_stop=draft_stop,
      verification=verification,
      lenience=lenience,
      max_new_tokens=longest,
      eos_ids=eos_ids,
      log_probs=log_probs,
  )
  size = target.config.vocab_size
  if max(decoding.eos_ids, default=0) >= size:
    raise errors.UserError(
        f'eos_ids has {max(decoding.eos_ids)}, but {target.name} has {size}'
        ' tokens.'
    )
  if draft is not None:
    loading.check_pair(target, draft)
  order, parts = [], []
  size = min(batch_size, len(tokens))
  for batch in batches:
    # One shape is one compiled program: the last row fills up a batch.
    more = [batch.numbers[-1]] * (size - len(batch.numbers))
    numbers = [*batch.numbers, *more]
    out = sample(
        target,
        draft,
        tokens[numbers, : batch.width],
        segments[numbers, : batch.width],
        numbers,
        decoding,
        requests.seed,
        requests.controls(numbers),
    )
    order += batch.numbers
    parts.append(_first(out, len(batch.numbers)))
  back = np.argsort(order)
  out = jax.tree.map(lambda *x: np.concatenate(x)[back], *parts)
  text = []
  if target.vocabulary is not None:
    strings = requests_lib.stop_strings(stop)
    text = _texts(target, out, requests, strings, decoding.eos_ids)
  return Generation(
      text, out.tokens, out.lengths, out.origins, out.statistics, out.log_probs
  )


def sample(
    target: loading.Model,
    draft: loading.Model | None,
    tokens: jax.Array | np.ndarray,
    segments: jax.Array | np.ndarray,
    numbers: Sequence[int] | np.ndarray,
    decoding: decoding_lib.Decoding,
    seed: int | np.ndarray,
    controls: controls_lib.Controls = controls_lib.NO_CONTROLS,
) -> samples_lib.Samples:
  """Answers to tokenised inputs, on the host.

  Args:
    target: the model that decides.
    draft: the model that proposes, or None.
    tokens: int32[B, S].
    segments: int32[B, S], 0 is padding.
    numbers: int32[B] numbers of the rows.
    decoding: settings.
    seed: row b draws from the stream (seed, numbers[b]); of an array, from
      (seed[numbers[b]], 0).
    controls: settings of rows.

  Raises:
    Failed: logits were not finite.
  """
  numbers = np.asarray(numbers)
  if np.ndim(seed) == 0:
    keys = randomness.row_keys(jax.random.key(seed), jnp.asarray(numbers))
  else:
    keys = randomness.events(jax.vmap(jax.random.key)(seed[numbers]), 0)
  tokens, segments = jnp.asarray(tokens), jnp.asarray(segments)
  if draft is None:
    out = autoregressive.generate(
        target.transformer,
        target.params,
        tokens,
        segments,
        keys,
        decoding,
        controls=controls,
    )
  else:
    out = speculative.generate(
        target.transformer,
        target.params,
        draft.transformer,
        draft.params,
        tokens,
        segments,
        keys,
        decoding,
        controls,
    )
  out = jax.device_get(out)
  _check_finite(out, numbers, target, draft)
  return out


def _first(out: samples_lib.Samples, rows: int) -> samples_lib.Samples:
  return jax.tree.map(lambda x: x[:rows], out)


def _check_finite(out, numbers, target, draft) -> None:
  for column, model in enumerate((target, draft)):
    rows = np.flatnonzero(out.nonfinite_at[:, column] >= 0)
    if len(rows):
      step = out.nonfinite_at[rows[0], column]
      raise errors.Failed(
          f'The logits of {model.name} are not finite in row'
          f' {numbers[rows[0]]} after {step} new tokens'
          + (f' (and in {len(rows) - 1} more rows)' if len(rows) > 1 else '')
          + '. Its parameters or its computation overflow: check the'
          " checkpoint, and compute in 'bfloat16' or 'float32'."
      )


def detokenize(vocabulary, tokens: Sequence[int] | np.ndarray) -> str:
  """The text of a row, without EOS."""
  return vocabulary.decode([int(t) for t in tokens if t != _EOS])


def batched(
    target: loading.Model,
    inputs: Sequence[str] | np.ndarray | jax.Array,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, list[batching.Batch]]:
  """Tokens and segments int32[B, S] of all inputs, and how to batch them."""
  if batch_size < 1:
    raise errors.UserError(
        f'batch_size is {batch_size}; it must be at least 1.'
    )
  if hasattr(inputs, 'shape'):
    if len(inputs.shape) != 2 or not inputs.shape[0]:
      raise errors.UserError(
          f'inputs has shape {inputs.shape}; give int32[B, S] with B at least'
          ' 1, or a list of strings.'
      )
    tokens = np.asarray(inputs, np.int32)
    numbers = list(range(len(tokens)))
    batches = [
        batching.Batch(numbers[i : i + batch_size], tokens.shape[1])
        for i in range(0, len(tokens), batch_size)
    ]
    return tokens, (tokens != 0).astype(np.int32), batches
  if isinstance(inputs, str):
    raise errors.UserError(
        f'inputs is one string, {inputs[:40]!r}; give a list of strings.'
    )
  if not inputs:
    raise errors.UserError('inputs is empty; give at least one string.')
  if target.vocabulary is None:
    raise errors.UserError(
        f'The model {target.name} has no vocabulary, so it cannot read strings;'
        ' give tokens int32[B, S].'
    )
  rows = [tokenize(target, text) for text in inputs]
  lengths = [len(row) for row in rows]
  batches = list(batching.plan(lengths, min(batch_size, len(rows))))
  return *batching.pad(rows), batches


def _texts(target, out, requests, stop, eos_ids) -> list[str]:
  texts = []
  for row, (tokens, length) in enumerate(zip(out.tokens, out.lengths)):
    tokens, start = tokens[:length].tolist(), 0
    if tokens and tokens[-1] in eos_ids:
      tokens.pop()
    if requests.prefix is not None:
      start = len(detokenize(target.vocabulary, requests.prefix[row]))
      tokens = requests.prefix[row] + tokens
    text = detokenize(target.vocabulary, tokens)
    texts.append(stopping.cut(text, stop, start))
  return texts


def tokenize(model: loading.Model, text: str) -> list[int]:
  """The tokens that the model reads for a text; its encoder's end with EOS."""
  tokens = list(model.vocabulary.encode(text))
  return tokens if model.config.is_decoder_only else [*tokens, _EOS]
