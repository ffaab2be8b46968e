"""The losslessness certificate of a pair, on this device.

Everything is measured here: these models, this installation, this device.
`commands/certify.py` prints the checks and writes them to results.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator
import itertools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from distillspec_jax.checkpoints import loading
from distillspec_jax.core import check as check_lib
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.core import types
from distillspec_jax.evaluation import exactness
from distillspec_jax.evaluation import sensitivity as sensitivity_lib
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import adaptive_length
from distillspec_jax.sampling import batching
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import generation
from distillspec_jax.sampling import verification

# Every lossless way to speculate: name -> what it changes in a `Decoding`. The
# class of an adaptive draft length stands for a rule whose threshold is set so
# that the draft continues at half of its positions.
RULES: dict[str, dict[str, Any]] = {
    'token verification': {},
    'block verification': {'verifier': verification.Block()},
    'two paths': {'paths': 2},
    'length by confidence': {'adaptive': adaptive_length.Confidence},
    'length by entropy': {'adaptive': adaptive_length.Entropy},
    'block verification, length by confidence': {
        'verifier': verification.Block(),
        'adaptive': adaptive_length.Confidence,
    },
    'block verification, length by entropy': {
        'verifier': verification.Block(),
        'adaptive': adaptive_length.Entropy,
    },
}
# And of a draft that was trained to propose blocks in parallel.
PARALLEL_RULES: dict[str, dict[str, Any]] = {
    'parallel draft': {'parallel': True},
    'parallel draft, block verification, length by confidence': {
        'parallel': True,
        'verifier': verification.Block(),
        'adaptive': adaptive_length.Confidence,
    },
}
PLAIN = decoding_lib.Sampling(temperature=1.0)
# Faults of warping show where something is warped. That of a tiny pair always
# is, beside what the decoding says; an adaptive length does not look at it. Of
# its four tokens top_k and top_p each exclude some that the other would not.
WARPED = decoding_lib.Sampling(temperature=0.7, top_k=3, top_p=0.85)
_MAX_DIFFERENCE = 1e-3  # nats, float32, cached against teacher-forced
_MAX_UNREACHABLE = 1e-3  # of the target's probability


class Check(NamedTuple):
  """One line of the certificate."""

  name: str
  holds: bool
  evidence: str
  metrics: dict[str, results.Metric]
  decoding: decoding_lib.Decoding


def rules(
    decoding: decoding_lib.Decoding, draft: loading.Loaded | None = None
) -> dict[str, dict[str, Any]]:
  """`RULES`, and the decoding's own way to speculate if it is another one.

  Also `PARALLEL_RULES`, if the draft can do that; None cannot.
  """
  known = RULES
  if draft is not None and draft.config.mask_token is not None:
    known = RULES | PARALLEL_RULES
  drafting, own = decoding.drafting, {}
  if decoding.verifier != verification.Token():
    own['verifier'] = decoding.verifier
  if drafting.paths > 1:
    own['paths'] = drafting.paths
  if drafting.adaptive is not None:
    own['adaptive'] = drafting.adaptive
  if drafting.parallel:
    own['parallel'] = True
  if own in known.values():
    return known
  name = ', '.join(
      k if v is True else f'{k} {v.describe() if hasattr(v, "describe") else v}'
      for k, v in own.items()
  )
  return {**known, name: own}


def check_settings(decoding: decoding_lib.Decoding, samples: int) -> None:
  """Raises UserError where there is nothing to certify, before models load."""
  if not decoding.verifier.is_lossless:
    raise errors.UserError(
        f'The verifier {decoding.verifier.describe()} is lossy: what it emits'
        " does not have the target's distribution, so there is nothing to"
        ' certify. Use a lossless one, such as token or block.'
    )
  if decoding.is_greedy:
    raise errors.UserError(
        'temperature is 0; it is that of the sampled checks and must be greater'
        ' than 0. Greedy decoding is checked in any case.'
    )
  decoding.check_speculative()
  check_lib.at_least(1, samples=samples)


def checks(
    target: loading.Loaded,
    draft: loading.Loaded,
    prompt: types.Prompt,
    decoding: decoding_lib.Decoding,
    *,
    samples: int = 1024,
    sensitivity: sensitivity_lib.Sensitivity = sensitivity_lib.DEFAULT,
    seed: int = 0,
) -> Iterator[Check]:
  """Tests whether this pair emits what the target would; lazily.

  Every lossless way to speculate is checked, greedy and sampled; sampling at
  temperature 1, and as the decoding says. A distribution is not proved: each
  check says how small a bias it would have seen.

  Args:
    target: the model that decides.
    draft: the model that proposes.
    prompt: int32[n, S] different inputs.
    decoding: settings of the sampled checks.
    samples: outputs of the given pair to sample for each check.
    sensitivity: how many outputs of a tiny pair, and how rarely to err.
    seed: of sampling.

  Raises:
    UserError: see `check_settings`.
  """
  check_settings(decoding, samples)
  decoding.check_speculative(draft.config, draft.name)
  pair = target, draft
  fine = [exactness.compute_in(model, 'float32') for model in pair]
  coarse = [exactness.compute_in(model, 'bfloat16') for model in pair]
  rows = prompt.tokens.shape[0]

  for who, model, other in (('target', fine[0], None), ('draft', *fine[::-1])):
    measured = exactness.incremental(model, prompt, decoding, seed, other)
    # A draft in int8 may round differently through the cache; what it sampled
    # from is what counts.
    if model.config.weights != 'int8':
      yield _cache_check(who, measured, rows, decoding)
    if who == 'target':
      common = model_lib.common_vocabulary(target.model, draft.model)
      if common < model.config.vocab_size:
        yield _vocabulary_check(measured.mean[common:], rows, decoding)

  settings = {}
  thresholds = {
      adaptive_length.Confidence: measured.confidence,
      adaptive_length.Entropy: measured.entropy,
  }
  for name, changes in rules(decoding, draft).items():
    rule = changes.get('adaptive')
    if rule in thresholds:
      changes = {**changes, 'adaptive': rule(thresholds[rule])}
    own_way = {
        'verifier': verification.Token(), 'paths': 1, 'adaptive': None,
        'parallel': False, **changes,
    }  # fmt: skip
    settings[name] = decoding.replace(**own_way)
  for name in _greedy_rules(settings):
    greedy = settings[name].replace(temperature=0.0)
    measured = exactness.greedy(*fine, prompt, greedy)
    yield Check(
        f'greedy in float32, {name}',
        measured.different == 0,
        f'{measured.rows - measured.different} of {measured.rows} outputs are,'
        ' token for token, those of autoregressive decoding',
        _greedy_metrics(measured, measured.different == 0),
        greedy,
    )
    measured = exactness.greedy(*coarse, prompt, greedy)
    yield Check(
        f'greedy in bfloat16, {name}',
        measured.are_ties,
        f'{measured.different} of {measured.rows} outputs differ; where they'
        f' diverge, both tokens are within {measured.margin:.3g} of the best'
        f' logit, and rounding moves logits by up to {measured.rounding:.3g}',
        _greedy_metrics(measured, measured.are_ties),
        greedy,
    )
  many = types.Prompt(
      *(jnp.asarray(np.resize(x, (samples, x.shape[1]))) for x in prompt[:2])
  )
  share = sensitivity.false_alarm / num_statistical(decoding, draft)
  for is_tiny, name, sampling in _statistical(decoding, draft):
    sampled = settings[name].replace(sampling=sampling)
    name += _describe(sampling)
    if is_tiny:
      number = sensitivity_lib.num_samples(
          sensitivity.bias, exactness.num_outputs(sampled), share
      )
      # At least so many that hardly an output is too rare to be counted.
      fit = exactness.enumerated(sampled, max(number, 20_000), seed)
      yield _fit_check(
          f'distribution of a tiny pair, {name}',
          'outputs against the distribution of all outputs', fit, share,
          sampled,
      )  # fmt: skip
    else:
      fit = exactness.uniforms(*fine, many, sampled, seed)
      yield _fit_check(
          f'distribution of this pair, {name}',
          "tokens against the target's, given those before", fit, share,
          sampled,
      )  # fmt: skip


def _statistical(
    decoding: decoding_lib.Decoding, draft: loading.Loaded | None
) -> list[tuple[bool, str, decoding_lib.Sampling]]:
  """(of the tiny pair, rule, sampling) of each statistical check."""
  own = dict.fromkeys([PLAIN, decoding.sampling])
  of_pair = list(itertools.product(own, rules(decoding, draft)))
  warped = [
      (WARPED, name)
      for name, changes in rules(decoding, draft).items()
      if 'adaptive' not in changes and WARPED not in own
  ]
  both = [(True, of_pair + warped), (False, of_pair)]
  return [(x, name, sampling) for x, of in both for sampling, name in of]


def num_statistical(
    decoding: decoding_lib.Decoding, draft: loading.Loaded | None = None
) -> int:
  """How many of the checks of this draft are statistical."""
  return len(_statistical(decoding, draft))


def random_prompt(
    target: loading.Loaded, draft: loading.Loaded, count: int, length: int,
    seed: int,
) -> types.Prompt:  # fmt: skip
  """Random tokens int32[count, length] that both models know."""
  check_lib.at_least(1, inputs=count, input_length=length)
  size = model_lib.common_vocabulary(target.model, draft.model)
  rng = np.random.default_rng(seed)
  tokens = rng.integers(min(2, size - 1), size, (count, length))
  tokens = jnp.asarray(tokens, jnp.int32)
  return types.Prompt(tokens, jnp.ones_like(tokens))


def text_prompt(target: loading.Loaded, texts: list[str]) -> types.Prompt:
  """The texts as the target's tokens."""
  tokens = [generation.tokenize(target, text) for text in texts]
  return types.Prompt(*map(jnp.asarray, batching.pad(tokens)))


def _greedy_rules(settings: dict[str, decoding_lib.Decoding]) -> list[str]:
  """One name of each group of rules that are the same loop when greedy.

  Greedy, all lossless verifiers are one rule, and so are all adaptive lengths.
  """
  loops = {}
  for name, decoding in settings.items():
    drafting = decoding.drafting
    built_in = type(decoding.verifier).__module__.startswith('distillspec_jax.')
    verifier = None if built_in else decoding.verifier
    adaptive = drafting.adaptive is not None
    key = drafting.paths, adaptive, drafting.parallel, verifier
    loops.setdefault(key, name)
  return list(loops.values())


def _describe(sampling: decoding_lib.Sampling) -> str:
  """What differs from temperature 1, in the name of a check."""
  names = ('temperature', 'top_k', 'top_p')
  return ''.join(
      f', {name} {getattr(sampling, name):g}'
      for name in names
      if getattr(sampling, name) != getattr(PLAIN, name)
  )


def _cache_check(who, measured, rows, decoding) -> Check:
  holds = measured.difference <= _MAX_DIFFERENCE
  metric = lambda value, unit: results.Metric(value, None, rows, unit)
  return Check(
      f'cache of the {who} in float32',
      holds,
      'log-probabilities through the cache and teacher-forced are within'
      f' {measured.difference:.3g} nats (allowed: {_MAX_DIFFERENCE})',
      {
          'holds': metric(float(holds), '1'),
          'largest_difference': metric(measured.difference, 'nats'),
      },
      decoding,
  )


def _vocabulary_check(unreachable, rows, decoding) -> Check:
  mass = float(unreachable.sum())
  holds = mass <= _MAX_UNREACHABLE
  metric = lambda value: results.Metric(value, None, rows, '1')
  return Check(
      'vocabulary',
      holds,
      f'the draft has {len(unreachable)} fewer tokens than the target; these'
      f' are never emitted: the target gives them {mass:.3g} of its'
      f' probability (allowed: {_MAX_UNREACHABLE})',
      {'holds': metric(float(holds)), 'unreachable': metric(mass)},
      decoding,
  )


def _fit_check(name, what, fit, false_alarm, decoding) -> Check:
  holds = fit.p_value > false_alarm
  bias = sensitivity_lib.detectable_bias(fit.count, fit.cells, false_alarm)
  metric = lambda value: results.Metric(value, None, fit.count, '1')
  return Check(
      name,
      holds,
      f'{fit.count:,} {what}: p = {fit.p_value:.3g} (fails below'
      f' {false_alarm:.2g}); detects a bias of {100 * bias:.2g} %',
      {
          'holds': metric(float(holds)),
          'p_value': metric(fit.p_value),
          'detectable_bias': metric(bias),
      },
      decoding,
  )


def _greedy_metrics(measured, holds) -> dict[str, results.Metric]:
  metric = lambda value, unit: results.Metric(value, None, measured.rows, unit)
  return {
      'holds': metric(float(holds), '1'),
      'different_rows': metric(measured.different, 'outputs'),
      'margin': metric(measured.margin, 'logits'),
      'rounding': metric(measured.rounding, 'logits'),
  }
