"""The sampler: speculative where there is a draft, autoregressive otherwise."""

from __future__ import annotations

import jax

from distillspec_jax.core import types
from distillspec_jax.models import model as model_lib
from distillspec_jax.sampling import autoregressive
from distillspec_jax.sampling import controls as controls_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import samples as samples_lib
from distillspec_jax.sampling import speculative
from distillspec_jax.sampling import stopping


def generate(
    target: model_lib.Model,
    prompt: types.Prompt,
    keys: jax.Array,
    decoding: decoding_lib.Decoding,
    *,
    draft: model_lib.Model | None = None,
    controls: controls_lib.Controls = controls_lib.NO_CONTROLS,
    stop: stopping.Automaton | None = None,
) -> samples_lib.Samples:
  """Sequences with the target's distribution, unless a verifier is lossy.

  Args:
    target: the model that decides.
    prompt: what the models read.
    keys: key[B], one for each row.
    decoding: settings.
    draft: the model that proposes; None decodes autoregressively.
    controls: settings of single rows.
    stop: ends sequences at stop strings.
  """
  if draft is None:
    return autoregressive.generate(
        target, prompt, keys, decoding.without_draft(), controls=controls,
        stop=stop,
    )  # fmt: skip
  return speculative.generate(
      target, draft, prompt, keys, decoding, controls=controls, stop=stop
  )
