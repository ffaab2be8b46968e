"""`distillspec certify`: the losslessness certificate of a pair on a device.

Everything runs here: these models, this installation, this device. A
certificate that fails is exit code 1; all verdicts are lines of results.jsonl.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import store
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.evaluation import exactness
from distillspec_jax.models import int8
from distillspec_jax.models import transformer as transformer_lib
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from distillspec_jax.sampling import lossy

# Every lossless rule: name -> what it changes in the settings. To a length that
# the draft chooses by itself belongs a threshold, which is set so that it goes
# on at half of its places.
RULES = {
    'token verification': {},
    'block verification': {'verification': 'block'},
    'two drafts': {'num_drafts': 2},
    'length by confidence': {'draft_stop': 'confidence'},
    'length by entropy': {'draft_stop': 'entropy'},
    'blocks of a length by confidence': {
        'verification': 'block',
        'draft_stop': 'confidence',
    },
    'blocks of a length by entropy': {
        'verification': 'block',
        'draft_stop': 'entropy',
    },
}
PLAIN = {'temperature': 1.0, 'top_k': 0, 'top_p': 1.0}
_LARGEST_DIFFERENCE = 1e-3  # nats, float32, cached against teacher-forced
_ENUMERATED_ROWS = 20_000


class Check(NamedTuple):
  """One line of the certificate."""

  name: str
  holds: bool
  what: str
  metrics: dict[str, results.Metric]
  decoding: decoding_lib.Decoding


def certify(
    *,
    target: str,
    draft: str,
    run: str | None = None,
    file: str | None = None,
    inputs: int = 32,
    input_length: int = 32,
    samples: int = 1024,
    max_new_tokens: int = 32,
    block_length: int = 5,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    lenience: tuple | None = None,
    target_weights: str | None = None,
    draft_weights: str | None = None,
    false_alarm: float = 1e-6,
    seed: int = 0,
) -> None:
  """Proves, or refutes, that this pair's output is the target's own.

  Sampling is checked at temperature 1, and as the settings say. Every lossless
  rule is checked, greedy and sampled.

  Args:
    target: folder or name of the model that decides.
    draft: folder or name of the model that proposes.
    run: folder whose results.jsonl gets the verdicts.
    file: inputs, one a line; default: random tokens.
    inputs: how many different inputs.
    input_length: tokens of a random input; longer lines of a file are refused.
    samples: rows to sample for each rule and warping.
    max_new_tokens: length of an output at most.
    block_length: tokens drafted before each call of the target.
    temperature: of sampling.
    top_k: likewise; 0 allows all.
    top_p: likewise; 1 allows all.
    lenience: refused: what it accepts has not the law of the target.
    target_weights: 'int8_weight_only' certifies what that target says, which is
      another one than the saved; 'int8' is refused: how it rounds depends on
      how many tokens are read at once.
    draft_weights: 'int8' or 'int8_weight_only'.
    false_alarm: chance that the certificate fails though all is right; each of
      its statistical checks gets an equal share of it.
    seed: of inputs and sampling.

  Raises:
    UserError: models or settings that do not fit.
    Failed: a check failed; the message names it.
  """
  if lenience is not None:
    rule = lossy.describe(lossy.parse(lenience))
    raise errors.UserError(
        f"lenience is {','.join(map(str, rule))}, a lossy rule: what it accepts"
        " does not have the target's law, so there is nothing to certify. Leave"
        ' --lenience out.'
    )
  if target_weights == 'int8':
    raise errors.UserError(
        "target_weights is 'int8', which rounds what is multiplied with a"
        ' weight to 8 bits: its probabilities depend on how many tokens are'
        ' read at once, so there is no one law to certify. Use'
        " 'int8_weight_only' for the target; a draft may have 'int8'."
    )
  if not temperature > 0.0:
    raise errors.UserError(
        f'temperature is {temperature}; it is of the sampled checks and must be'
        ' greater than 0. Greedy decoding is checked anyway.'
    )
  for name, value in (('inputs', inputs), ('samples', samples)):
    if value < 1:
      raise errors.UserError(f'{name} is {value}; it must be at least 1.')
  if not 0.0 < false_alarm < 1.0:
    raise errors.UserError(
        f'false_alarm is {false_alarm}; it must lie between 0 and 1.'
    )
  settings = decoding_lib.Decoding(
      temperature=temperature,
      top_k=top_k,
      top_p=top_p,
      block_length=block_length,
      max_new_tokens=max_new_tokens,
  )
  if run is not None:
    store.check_writable(run)
  models = (
      loading.load(target, weights=target_weights),
      loading.load(draft, weights=draft_weights),
  )
  loading.check_pair(*models)
  tokens, segments = _inputs(models, file, inputs, input_length, seed)
  device = jax.devices()[0]
  print(
      f'{target} with {draft}, on {device.device_kind}, jax {jax.__version__}'
  )
  print(
      f'chance that it fails though all is right: {false_alarm:g}, by'
      f' {_statistical(settings)} statistical checks together'
  )
  failed = []
  for check in _checks(models, tokens, segments, settings, samples,
                       false_alarm, seed):  # fmt: skip
    print(f'{"holds" if check.holds else "FAILS"}  {check.name}: {check.what}')
    if not check.holds:
      failed.append(check.name)
    if run is not None:
      _write(run, models, check, seed)
  if failed:
    raise errors.Failed(
        f'The certificate fails: {", ".join(failed)}. Do not rely on what this'
        ' pair emits here; please report it with the lines above.'
    )
  print("The output of this pair, on this device, is the target's own.")


def _checks(models, tokens, segments, settings, samples, false_alarm, seed):
  """Each check as soon as it is made."""
  wide = [exactness.compute_in(model, 'float32') for model in models]
  coarse = [exactness.compute_in(model, 'bfloat16') for model in models]

  thresholds = {}
  for who, model, target in (('target', wide[0], None), ('draft', *wide[::-1])):
    found = exactness.incremental(
        model, tokens, segments, settings, seed, target
    )
    # Rounded to int8 a draft may be of two minds: what it drew from counts.
    if model.config.weights != 'int8':
      yield _cache_check(who, found, len(tokens), settings)
    thresholds = found._asdict()

  rules = {}
  for name, changes in RULES.items():
    rules[name] = dict(changes)
    if 'draft_stop' in changes:
      stop = changes['draft_stop']
      rules[name]['draft_stop'] = (stop, thresholds[stop])
  for name in _greedy_rules():
    decoding = dataclasses.replace(settings, temperature=0.0, **rules[name])
    found = exactness.greedy(*wide, tokens, segments, decoding)
    yield Check(
        f'greedy in float32, {name}',
        found.different == 0,
        f'{found.rows - found.different} of {found.rows} rows are, token for'
        ' token, those of autoregressive decoding',
        _greedy_metrics(found, found.different == 0),
        decoding,
    )
    found = exactness.greedy(*coarse, tokens, segments, decoding)
    yield Check(
        f'greedy in bfloat16, {name}',
        found.are_ties,
        f'{found.different} of {found.rows} rows differ; where they part, both'
        f' tokens are within {found.margin:.3g} of the best logit, and rounding'
        f' moves logits by up to {found.rounding:.3g}',
        _greedy_metrics(found, found.are_ties),
        decoding,
    )
  repeat = -(-samples // len(tokens))
  many = jnp.tile(tokens, (repeat, 1))[:samples]
  many_segments = jnp.tile(segments, (repeat, 1))[:samples]
  share = false_alarm / _statistical(settings)
  for warping in _warpings(settings):
    for name, changes in rules.items():
      decoding = dataclasses.replace(settings, **warping, **changes)
      what = name + _described(warping)
      fit = exactness.enumerated(decoding, _ENUMERATED_ROWS, seed)
      yield _fit_check(
          f'law of a tiny pair, {what}',
          'outputs beside the law of all outputs', fit, share, decoding,
      )  # fmt: skip
      fit = exactness.uniforms(*wide, many, many_segments, decoding, seed)
      yield _fit_check(
          f'law of this pair, {what}',
          'tokens beside the target given what was before', fit, share,
          decoding,
      )  # fmt: skip


def _greedy_rules() -> list[str]:
  """One rule of those that are greedy the same loop.

  Greedy, blocks are judged token by token, and one length is as another.
  """
  loops = {}
  for name, changes in RULES.items():
    loop = {**changes, 'verification': None}
    loop['draft_stop'] = 'draft_stop' in changes
    loops.setdefault(tuple(sorted(loop.items())), name)
  return list(loops.values())


def _warpings(settings: decoding_lib.Decoding) -> list[dict[str, float]]:
  """What is sampled with: nothing changed, and as the settings say."""
  own = {name: getattr(settings, name) for name in PLAIN}
  return [PLAIN] if own == PLAIN else [PLAIN, own]


def _described(warping: dict[str, float]) -> str:
  """The warping in the name of a check."""
  changed = {n: value for n, value in warping.items() if value != PLAIN[n]}
  return ''.join(f', {name} {value:g}' for name, value in changed.items())


def _statistical(settings: decoding_lib.Decoding) -> int:
  """How many checks are of chance."""
  return 2 * len(RULES) * len(_warpings(settings))


def _cache_check(who, found, rows, settings) -> Check:
  holds = found.apart <= _LARGEST_DIFFERENCE
  metric = lambda value, unit: results.Metric(value, None, rows, unit)
  return Check(
      f'cache of the {who} in float32',
      holds,
      'log-probabilities through the cache and teacher-forced are within'
      f' {found.apart:.3g} nats (allowed: {_LARGEST_DIFFERENCE})',
      {
          'holds': metric(float(holds), '1'),
          'largest_difference': metric(found.apart, 'nats'),
      },
      settings,
  )


def _fit_check(name, what, fit, false_alarm, decoding) -> Check:
  holds = fit.p_value > false_alarm
  return Check(
      name,
      holds,
      f'{fit.count:,} {what}: p = {fit.p_value:.3g} (fails below'
      f' {false_alarm:.2g})',
      {
          'holds': results.Metric(float(holds), None, fit.count, '1'),
          'p_value': results.Metric(fit.p_value, None, fit.count, '1'),
      },
      decoding,
  )


def _greedy_metrics(found, holds) -> dict[str, results.Metric]:
  metric = lambda value, unit: results.Metric(value, None, found.rows, unit)
  return {
      'holds': metric(float(holds), '1'),
      'different_rows': metric(found.different, 'rows'),
      'margin': metric(found.margin, 'logits'),
      'rounding': metric(found.rounding, 'logits'),
  }


def _inputs(models, file, count, length, seed):
  """Tokens and segments int32[count, length]."""
  vocabulary = transformer_lib.shared_vocabulary(
      *(model.transformer for model in models)
  )
  if file is None:
    if length < 1:
      raise errors.UserError(
          f'input_length is {length}; it must be at least 1.'
      )
    rng = np.random.default_rng(seed)
    rows = rng.integers(min(2, vocabulary - 1), vocabulary, (count, length))
    return jnp.asarray(rows, jnp.int32), jnp.ones((count, length), jnp.int32)
  target = models[0]
  if target.vocabulary is None:
    raise errors.UserError(
        f'{target.name} has no vocabulary, so it cannot read {file}; leave'
        ' --file out to certify on random tokens.'
    )
  lines = pathlib.Path(file).read_text(encoding='utf-8').splitlines()[:count]
  rows = [generation.tokenize(target, line) for line in lines if line]
  if not rows:
    raise errors.UserError(f'{file} has no line with text.')
  tokens, segments = batching.pad(rows)
  return jnp.asarray(tokens), jnp.asarray(segments)


def _write(run, models, check, seed) -> None:
  target, draft = (int8.named(x.name, x.config.weights) for x in models)
  results.write(
      run,
      'certificate',
      target=target,
      draft=draft,
      task='certificate',
      split='all',
      decoding=check.decoding.describe(speculative=True, batch_size=1),
      metrics={
          f'{check.name}: {name}': metric
          for name, metric in check.metrics.items()
      },
      seed=seed,
  )
