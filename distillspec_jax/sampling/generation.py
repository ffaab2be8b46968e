"""`ds.generate`: texts or tokens in, texts and tokens out."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.core import randomness
from distillspec_jax.core import types
from distillspec_jax.data import files
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import requests as requests_lib
from distillspec_jax.sampling import sampler
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import stopping
from distillspec_jax.sampling import verification

_EOS = decoding_lib.EOS


@dataclasses.dataclass(frozen=True)
class Generation:
  """What was generated.

  Attributes:
    text: one string for each input, the prefix included, up to a stop string;
      empty where the target has no vocabulary.
    tokens: int32[B, L] new tokens, 0 after the last; that is EOS, completes a
      stop string, or reaches the limit.
    lengths: int32[B].
    origins: int8[B, L], the `samples.Origin` of each token.
    statistics: counts for each input, with `acceptance_rate` and
      `block_efficiency`.
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
    target: loading.Loaded,
    inputs: Sequence[str] | np.ndarray | jax.Array,
    *,
    draft: loading.Loaded | None = None,
    max_new_tokens: int | Sequence[int] = 128,
    min_new_tokens: int | Sequence[int] = 0,
    temperature: float | Sequence[float] = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    block_length: int = 5,
    paths: int = 1,
    adaptive: adaptive_length.AdaptiveLength | str | None = None,
    parallel: bool = False,
    verifier: verification.Verifier | str = 'token',
    stop: str | Sequence[str] = (),
    eos_ids: tuple[int, ...] = (_EOS,),
    prefix: str | Sequence[str] | Sequence[Sequence[int]] | None = None,
    log_probs: bool = False,
    decoding: decoding_lib.Decoding | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int = 64,
) -> Generation:
  """Outputs of the target, faster where a draft is given.

  Outputs have the target's distribution with a draft and without; greedy
  (temperature 0) they are the same tokens. Only a lossy verifier changes that.
  Arguments that may be a sequence take one value for each input. Example:

    out = ds.generate(target, ['import os'], draft=draft, temperature=1.0)
    print(out.text[0], out.statistics.block_efficiency)

  Args:
    target: the model that decides.
    inputs: strings, or int32[B, S] padded with 0.
    draft: the model that proposes; None decodes autoregressively.
    max_new_tokens: maximum length of an output, EOS included.
    min_new_tokens: tokens before EOS is allowed.
    temperature: 0 is greedy.
    top_k: only the k most likely tokens; 0 allows all.
    top_p: only the most likely tokens that together reach this probability.
    block_length: tokens drafted before each target call.
    paths: independent drafts of each block, of which the target follows the one
      that is accepted farthest.
    adaptive: ends a block where the draft is unsure: `ds.Confidence(c)`,
      `ds.Entropy(h)`, or a text such as 'confidence(0.4)'.
    parallel: one call of the draft proposes the whole block; for drafts that
      were trained for it.
    verifier: which drafted tokens are accepted: `ds.Token()`; `ds.Block()`,
      which accepts no fewer; or a lossy one, such as `ds.Lenient('linear',
      0.5)`. Also as a text: 'block', 'lenient(linear, 0.5)'.
    stop: strings that end an output, however they are split into tokens; the
      text ends before them.
    eos_ids: tokens that end an output; () lets none end early.
    prefix: what every output begins with: one text, one for each input, or
      tokens.
    log_probs: whether to return the log-probabilities of the new tokens.
    decoding: all of the above from temperature to verifier, and
      max_new_tokens, eos_ids and log_probs, as one value instead.
    seed: input i draws from the stream (seed, i), whatever the batch; with one
      seed for each input, from (seed[i], 0). In [0, 2**32).
    batch_size: inputs decoded together. Texts of similar length are grouped, so
      that short ones are not padded to long ones.

  Returns:
    Texts, tokens and statistics, in the order of the inputs.

  Raises:
    UserError: models that do not fit each other, settings out of range, no
      inputs, or strings for a model without a vocabulary.
    Failed: logits were not finite.
  """
  _check_models(target, draft)
  if decoding is not None:
    if not isinstance(decoding, decoding_lib.Decoding):
      raise errors.UserError(
          f'decoding is {check.shown(decoding)}; give a Decoding.'
      )
    _refuse_both(
        max_new_tokens=(max_new_tokens, 128),
        temperature=(temperature, 0.0),
        top_k=(top_k, 0),
        top_p=(top_p, 1.0),
        block_length=(block_length, 5),
        paths=(paths, 1),
        adaptive=(adaptive, None),
        parallel=(parallel, False),
        verifier=(verifier, 'token'),
        eos_ids=(eos_ids, (_EOS,)),
        log_probs=(log_probs, False),
    )
    max_new_tokens = decoding.output_length
    temperature = decoding.sampling.temperature
  tokens, segments, batches = batched(target, inputs, batch_size, draft)
  requests = requests_lib.check(
      target,
      len(tokens),
      max_new_tokens=max_new_tokens,
      min_new_tokens=min_new_tokens,
      temperature=temperature,
      seed=seed,
      prefix=prefix,
      stop=stop,
      draft=draft,
  )
  if decoding is None:
    if isinstance(verifier, str):
      verifier = verification.parse(verifier)
    if isinstance(adaptive, str):
      adaptive = adaptive_length.parse(adaptive)
    decoding = decoding_lib.Decoding(
        sampling=decoding_lib.Sampling(
            # Temperatures of single sequences are in `Controls`.
            temperature=1.0
            if isinstance(requests.temperature, np.ndarray)
            else requests.temperature,
            top_k=top_k,
            top_p=top_p,
        ),
        drafting=decoding_lib.Drafting(
            length=block_length,
            paths=paths,
            adaptive=adaptive,
            parallel=parallel,
        ),
        verifier=verifier,
        max_new_tokens=requests.longest,
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
    decoding.check_speculative(draft.config, draft.name)
  order, parts = [], []
  size = min(batch_size, len(tokens))
  for batch in batches:
    # One shape is one compiled program, so the last input fills up a batch.
    fill = [batch.numbers[-1]] * (size - len(batch.numbers))
    numbers = [*batch.numbers, *fill]
    out = sample(
        target,
        draft,
        types.Prompt(
            jnp.asarray(tokens[numbers, : batch.width]),
            jnp.asarray(segments[numbers, : batch.width]),
        ),
        numbers,
        decoding,
        requests.seed,
        requests.controls(numbers),
        requests.stop,
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
    target: loading.Loaded,
    draft: loading.Loaded | None,
    prompt: types.Prompt,
    numbers: Sequence[int] | np.ndarray,
    decoding: decoding_lib.Decoding,
    seed: int | np.ndarray,
    controls: controls_lib.Controls = controls_lib.NO_CONTROLS,
    stop: stopping.Automaton | None = None,
) -> samples_lib.Samples:
  """Outputs for one batch of tokenised inputs, on the host.

  Args:
    target: the model that decides.
    draft: the model that proposes, or None.
    prompt: tokens and segments int32[B, S].
    numbers: int32[B] numbers of the inputs.
    decoding: settings.
    seed: row b draws from the stream (seed, numbers[b]); of an array, from
      (seed[numbers[b]], 0).
    controls: settings of single rows.
    stop: ends outputs at stop strings.

  Raises:
    Failed: logits were not finite.
  """
  numbers = np.asarray(numbers)
  if isinstance(seed, np.ndarray):
    keys = randomness.events(jax.vmap(jax.random.key)(seed[numbers]), 0)
  else:
    keys = randomness.row_keys(jax.random.key(seed), jnp.asarray(numbers))
  out = sampler.generate(
      target.model,
      prompt,
      keys,
      decoding,
      draft=None if draft is None else draft.model,
      controls=controls,
      stop=stop,
  )
  out = jax.device_get(out)
  _check_finite(out, numbers, target, draft)
  return out


def _first(out: samples_lib.Samples, rows: int) -> samples_lib.Samples:
  return jax.tree.map(lambda x: x[:rows], out)


def _check_models(target: Any, draft: Any) -> None:
  for name, model in (('target', target), ('draft', draft)):
    if isinstance(model, loading.Loaded) or (name == 'draft' and model is None):
      continue
    raise errors.UserError(
        f'{name} is {check.shown(model)}; give a model, as ds.load returns it.'
    )
  if draft is not None:
    loading.check_pair(target, draft)


def _refuse_both(**values: tuple[Any, Any]) -> None:
  """Raises for given arguments, name -> (value, default), of `decoding`."""
  given = [  # values may be arrays
      n for n, (value, default) in values.items()
      if not np.array_equal(value, default)
  ]  # fmt: skip
  if given:
    raise errors.UserError(
        f'{", ".join(given)} and decoding are both given; set'
        f' {"it" if len(given) == 1 else "them"} in decoding.'
    )


def _check_finite(out, numbers, target, draft) -> None:
  for index, model in enumerate((target, draft)):
    wrong = np.flatnonzero(out.nonfinite_at[:, index] >= 0)
    if len(wrong):
      step = out.nonfinite_at[wrong[0], index]
      raise errors.Failed(
          f'The logits of {model.name} are not finite for input'
          f' {numbers[wrong[0]]} after {step} new tokens'
          + (
              f' (and for {len(wrong) - 1} more inputs)'
              if wrong[1:].size
              else ''
          )
          + '. Its parameters are wrong or its computation overflows: check the'
          " checkpoint, and compute in 'bfloat16' or 'float32'."
      )


def detokenize(vocabulary: Any, tokens: Sequence[int] | np.ndarray) -> str:
  """The text of tokens, without EOS."""
  return vocabulary.decode([int(t) for t in tokens if t != _EOS])


def batched(
    target: loading.Loaded,
    inputs: Sequence[str] | np.ndarray | jax.Array,
    batch_size: int,
    draft: loading.Loaded | None = None,
) -> tuple[np.ndarray, np.ndarray, list[batching.Batch]]:
  """Tokens and segments int32[B, S] of all inputs, and how to batch them.

  Raises:
    UserError: inputs of another kind, or tokens that a model does not have.
  """
  check.at_least(1, batch_size=batch_size)
  if hasattr(inputs, 'shape'):
    reads_encoder = not target.config.is_decoder_only
    least = (1, 1 if reads_encoder else 0)
    if len(inputs.shape) != 2 or any(map(operator.lt, inputs.shape, least)):
      raise errors.UserError(
          f'inputs has shape {inputs.shape}; give int32[B, S] with B at least'
          f' 1 and S at least {least[1]}, or a list of strings.'
      )
    array = np.asarray(inputs)
    if array.dtype.kind not in 'iu':
      raise errors.UserError(
          f'inputs is of type {array.dtype}; give tokens int32[B, S], or a list'
          ' of strings.'
      )
    size = min(x.config.vocab_size for x in (target, draft or target))
    wrong = (array < 0) | (array >= size)
    if wrong.any():
      number, place = np.argwhere(wrong)[0]
      raise errors.UserError(
          f'Input {number} has token {array[number, place]} at {place}; tokens'
          f' must lie in [0, {size}).'
      )
    empty = np.flatnonzero(~array.any(axis=1))
    if reads_encoder and empty.size:
      raise errors.UserError(
          f'Input {empty[0]} is nothing but padding (0); an empty input has EOS'
          f' ({_EOS}).'
      )
    tokens = array.astype(np.int32)
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
  if not isinstance(inputs, Sequence):
    raise errors.UserError(
        f'inputs is {check.shown(inputs)}; give a list of strings, or tokens'
        ' int32[B, S] padded with 0.'
    )
  if not inputs:
    raise errors.UserError('inputs is empty; give at least one string.')
  for number, text in enumerate(inputs):
    if not isinstance(text, str):
      raise errors.UserError(
          f'Input {number} is {check.shown(text)}; give strings, or one array'
          ' of tokens int32[B, S] padded with 0.'
      )
    files.check_text(text, f'Input {number}')
  if target.vocabulary is None:
    raise errors.UserError(
        f'The model {target.name} has no vocabulary, so it cannot read strings;'
        ' give tokens int32[B, S].'
    )
  tokenised = [tokenize(target, text) for text in inputs]
  lengths = [len(tokens) for tokens in tokenised]
  batches = list(batching.plan(lengths, min(batch_size, len(lengths))))
  return *batching.pad(tokenised), batches


def _texts(target, out, requests, stop, eos_ids) -> list[str]:
  texts = []
  for number, (tokens, length) in enumerate(zip(out.tokens, out.lengths)):
    tokens, start = tokens[:length].tolist(), 0
    if tokens and tokens[-1] in eos_ids:
      tokens.pop()
    if requests.prefix is not None:
      start = len(detokenize(target.vocabulary, requests.prefix[number]))
      tokens = requests.prefix[number] + tokens
    text = detokenize(target.vocabulary, tokens)
    texts.append(stopping.cut(text, stop, start))
  return texts


def tokenize(model: loading.Loaded, text: str) -> list[int]:
  """The tokens that the model reads for a text; an encoder's end with EOS."""
  tokens = list(model.vocabulary.encode(text))
  return tokens if model.config.is_decoder_only else [*tokens, _EOS]
