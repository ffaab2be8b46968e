"""`distillspec certify`: does this pair emit what the target would?"""

from __future__ import annotations

import argparse

import jax

from distillspec_jax.checkpoints import loading
from distillspec_jax.checkpoints import store
from distillspec_jax.commands import devices
from distillspec_jax.commands import flags
from distillspec_jax.core import check as check_lib
from distillspec_jax.core import errors
from distillspec_jax.core import results
from distillspec_jax.data import files
from distillspec_jax.evaluation import sensitivity as sensitivity_lib
from distillspec_jax.models import int8
from distillspec_jax.sampling import decoding as decoding_lib

HELP = (
    "whether this pair's output, on this device, has the target's distribution;"
    ' exit code 1 if not'
)
EXAMPLE = 'distillspec certify --target=flan-t5-large --draft=runs/draft'
_SAMPLED = decoding_lib.Decoding(
    sampling=decoding_lib.Sampling(temperature=1.0), max_new_tokens=32
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  flags.add(parser, certify, flags.DECODING)
  devices.add_mesh_flag(parser)


def run(options: argparse.Namespace) -> None:
  with devices.using(options):
    flags.call(certify, options, flags.DECODING)


def certify(
    *,
    target: str,
    draft: str,
    run: str | None = None,
    file: str | None = None,
    inputs: int = 32,
    input_length: int = 32,
    samples: int = 1024,
    decoding: decoding_lib.Decoding = _SAMPLED,
    target_weights: str | None = None,
    draft_weights: str | None = None,
    sensitivity: sensitivity_lib.Sensitivity = sensitivity_lib.DEFAULT,
    seed: int = 0,
) -> None:
  """Tests whether this pair emits what the target would.

  Every lossless way to speculate is checked, greedy and sampled; sampling at
  temperature 1, and as the flags say. Distributions of samples can only be
  tested so far: each check says what bias it would have seen in 99 of 100
  cases, as the share of the probability that goes to other outputs or tokens
  (total variation).

  Args:
    target: folder or name of the model that decides.
    draft: folder or name of the model that proposes.
    run: folder whose results.jsonl gets the verdicts.
    file: inputs, one per line; default: random tokens.
    inputs: how many different inputs.
    input_length: tokens of a random input.
    samples: outputs of this pair to sample for each check; 32 tokens each show
      a bias of 3 %, and a bias half as large takes four times as many.
    decoding: settings of the sampled checks; its verifier must be lossless.
    target_weights: 'int8_weight_only' certifies that approximation of the
      target. 'int8' is refused: its rounding depends on how many tokens are
      read at once.
    draft_weights: 'int8' or 'int8_weight_only'.
    sensitivity: what bias of a tiny pair is detected, and how rarely a right
      pair fails.
    seed: of inputs and sampling.

  Raises:
    UserError: models or settings that do not fit.
    Failed: a check failed; the message names it.
  """
  from distillspec_jax.evaluation import certificate

  if target_weights == 'int8':
    raise errors.UserError(
        "target_weights is 'int8', which rounds activations to 8 bits, too: its"
        ' probabilities depend on how many tokens are read at once, so there is'
        " no single distribution to certify. Use 'int8_weight_only' for the"
        " target; a draft may have 'int8'."
    )
  certificate.check_settings(decoding, samples)
  check_lib.at_least(1, max_value=check_lib.MAX_ROWS, inputs=inputs)
  check_lib.at_least(
      1, max_value=check_lib.MAX_TOKENS, input_length=input_length
  )
  check_lib.at_least(1, max_value=2**24, samples=samples)
  check_lib.seed(seed=seed)
  folder = None if run is None else store.check_writable(run)
  models = (
      loading.load(target, weights=target_weights),
      loading.load(draft, weights=draft_weights),
  )
  loading.check_pair(*models)
  decoding.check_speculative(models[1].config, draft)
  if file is None:
    prompt = certificate.random_prompt(*models, inputs, input_length, seed)
  else:
    prompt = certificate.text_prompt(models[0], _texts(models[0], file, inputs))
  kind = jax.devices()[0].device_kind
  print(f'{target} with {draft}, on {kind}, jax {jax.__version__}')
  shared = certificate.num_statistical(decoding, models[1])
  print(
      f'chance of a false alarm: {sensitivity.false_alarm:g}, shared by'
      f' {shared} statistical checks\n'
      'detects a bias: one of this size (total variation) is noticed with'
      f' probability {sensitivity_lib.POWER:g}; on the tiny pair'
      f' {100 * sensitivity.bias:g} %, set by --bias'
  )
  failed = []
  for check in certificate.checks(
      *models, prompt, decoding, samples=samples,
      sensitivity=sensitivity, seed=seed,
  ):  # fmt: skip
    verdict = 'holds' if check.holds else 'FAILS'
    print(f'{verdict}  {check.name}: {check.evidence}', flush=True)
    if not check.holds:
      failed.append(check.name)
    if folder is not None:
      _write(folder, models, check, seed)
  if failed:
    raise errors.Failed(
        f'The certificate fails: {", ".join(failed)}. Do not rely on what this'
        ' pair emits here; please report it with the lines above.'
    )
  print(
      'On this device, this pair emits what the target would, to the precision'
      ' of the checks above.'
  )


def _texts(target: loading.Loaded, file: str, count: int) -> list[str]:
  if target.vocabulary is None:
    raise errors.UserError(
        f'{target.name} has no vocabulary, so it cannot read {file}; leave'
        ' --file out to certify on random tokens.'
    )
  lines = files.texts(file, 'inputs', setting='')
  texts = [text for text in lines if text][:count]
  if not texts:
    raise errors.UserError(f'{file} has no line with text.')
  return texts


def _write(folder, models, check, seed) -> None:
  target, draft = (int8.named(x.name, x.config.weights) for x in models)
  results.write(
      folder,
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
