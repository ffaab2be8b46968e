"""Lossy: quality against block efficiency, for lenient verification.

The three lenience functions, each epsilon and both residuals; beside them what
costs no exactness: the target's own truncated distribution (temperature, top-k,
top-p), of which speculation emits exact samples. A lossy decoding is worth its
loss where no truncation has the same quality at the same block efficiency.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, ClassVar

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.sampling import verification
from distillspec_jax.studies import builder as builder_lib
from distillspec_jax.studies import setup as setup_lib

TRUNCATED = 'truncated sampling'
LOSSLESS = 'lossless'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lossy:
  """Lenient decodings of a pair, and truncated ones.

  Attributes:
    setup: the models; decodings of `setup.evaluate` and `setup.benchmark` are
      replaced by those of the study.
    functions: lenience functions: 'linear', 'square', 'exponential'.
    epsilons: of each function; 1 is lossless, and measured anyway.
    residuals: 'target' and 'relaxed'; greedy decoding has no residual.
    temperatures: of the lenient decodings.
    truncations: top-k, top-p and temperature of the target; see `truncations`.
    block_length: tokens drafted per target call.
    drafts: which are measured: 'fine-tuned', 'fine-tuned longer', 'distilled'.
  """

  setup: setup_lib.Setup
  functions: Sequence[str] = ('linear', 'square', 'exponential')
  epsilons: Sequence[float] = (0.5, 0.2, 0.1, 0.03, 0.01)
  residuals: Sequence[str] = ('target', 'relaxed')
  temperatures: Sequence[float] = (0.0, 1.0)
  truncations: Sequence[decoding_lib.Sampling] = ()
  block_length: int = 5
  drafts: Sequence[str] = (
      builder_lib.FINE_TUNED, builder_lib.LONGER, 'distilled',
  )  # fmt: skip

  kind: ClassVar[str] = 'lossy'
  axes: ClassVar[tuple[str, ...]] = (
      'function', 'residual', 'epsilon', 'temperature', 'draft', 'top_k',
      'top_p',
  )  # fmt: skip

  def __post_init__(self):
    check.distinct(
        functions=self.functions,
        epsilons=self.epsilons,
        residuals=self.residuals,
        temperatures=self.temperatures,
        truncations=self.truncations,
        drafts=self.drafts,
    )
    known = builder_lib.FINE_TUNED, builder_lib.LONGER, 'distilled'
    for draft in self.drafts:
      check.one_of(known, drafts=draft)
    if builder_lib.LONGER in self.drafts and self.setup.control is None:
      raise errors.UserError(
          f'drafts has {builder_lib.LONGER!r}, but Setup.control is None; set'
          ' it, or leave that draft out.'
      )
    for function in self.functions:  # each checks itself
      for epsilon in self.epsilons:
        for residual in self.residuals:
          verification.Lenient(function, epsilon, residual)
    for epsilon in self.epsilons:
      if epsilon == 1.0:
        raise errors.UserError(
            'epsilons has 1, which is lossless; that is measured anyway. Leave'
            ' it out.'
        )
    for one in self.truncations:
      if not isinstance(one, decoding_lib.Sampling):
        raise errors.UserError(
            f'truncations has {check.shown(one)}; give Sampling objects, as'
            ' `truncations` makes them.'
        )
    if not (self.functions and self.epsilons and self.drafts):
      raise errors.UserError(
          'functions, epsilons and drafts must each have at least one value.'
      )

  def build(self, builder: builder_lib.Builder) -> None:
    setup = self.setup
    for seed in setup.seeds:
      target, fine_tuned = builder.target(seed), builder.fine_tuned(seed)
      drafts = [fine_tuned]
      if builder_lib.LONGER in self.drafts:
        drafts.append(
            builder.from_draft(
                setup.control, seed, name=builder_lib.LONGER, start=fine_tuned,
                target=None,
            )
        )  # fmt: skip
      if 'distilled' in self.drafts:
        drafts.append(
            builder.from_draft(
                setup.distil, seed, name='distilled', start=fine_tuned,
                target=target,
            )
        )  # fmt: skip
      for draft in drafts:
        if draft is fine_tuned and builder_lib.FINE_TUNED not in self.drafts:
          continue
        self._build(builder, seed, target, draft)

  def _build(
      self,
      builder: builder_lib.Builder,
      seed: int,
      target: builder_lib.Model,
      draft: builder_lib.Model,
  ) -> None:
    """Adds the rows of one draft and seed."""
    for temperature in self.temperatures:
      sampling = decoding_lib.Sampling(temperature=temperature)
      # A greedy decoding corrects to the target's best token.
      residuals = self.residuals[:1] if sampling.is_greedy else self.residuals
      lossless = None
      for function in self.functions:
        for residual in residuals:
          verifiers = [
              verification.Lenient(function, epsilon, residual)
              for epsilon in self.epsilons
          ]
          decodings = [
              self._decoding(sampling, verifier)
              for verifier in (verification.Token(), *verifiers)
          ]
          measured = builder.measure_pair(
              target, draft, seed, decodings=decodings,
              suffix=f'_{function}_{residual}_T{temperature:g}',
          )  # fmt: skip
          labels = {'draft': draft.name, 'temperature': sampling.temperature}
          if lossless is None:
            lossless = self._row(
                builder, draft, seed, {'function': LOSSLESS, **labels},
                measured, decodings[0], None,
            )  # fmt: skip
          for verifier, decoding in zip(verifiers, decodings[1:]):
            own = {
                'function': function,
                'residual': residual,
                'epsilon': verifier.epsilon,
            }
            if sampling.is_greedy:
              del own['residual']
            self._row(
                builder, draft, seed, {**own, **labels}, measured, decoding,
                lossless,
            )  # fmt: skip
    decodings = [
        self._decoding(sampling, verification.Token())
        for sampling in self.truncations
    ]
    if not decodings:
      return
    measured = builder.measure_pair(
        target, draft, seed, decodings=decodings, suffix='_truncated'
    )
    for decoding in decodings:
      labels = {'function': TRUNCATED, 'draft': draft.name}
      labels |= dataclasses.asdict(decoding.sampling)
      self._row(builder, draft, seed, labels, measured, decoding, None)

  def _decoding(self, sampling, verifier) -> decoding_lib.Decoding:
    drafting = decoding_lib.Drafting(length=self.block_length)
    return decoding_lib.Decoding(
        sampling=sampling, drafting=drafting, verifier=verifier
    )

  def _row(
      self,
      builder: builder_lib.Builder,
      model: builder_lib.Model,
      seed: int,
      labels: dict[str, Any],
      measured: Sequence[str],
      decoding: decoding_lib.Decoding,
      control: str | None,
  ) -> str:
    """Adds the row of one decoding; returns its name."""
    sampling = dataclasses.asdict(decoding.sampling)
    own = {**sampling, 'verifier': decoding.verifier.describe()}
    # The target's own greedy text is measured as such.
    is_targets = decoding.is_greedy and decoding.verifier.is_lossless
    quality = {'kind': 'task_quality', 'model': 'pair', **own}
    if is_targets:
      quality = {'kind': 'task_quality', 'model': 'target', 'temperature': 0.0}
    shown = [
        f'{axis} {value:g}' if isinstance(value, int | float) else str(value)
        for axis, value in labels.items()
        if axis != 'draft' and (axis, value) not in (('top_k', 0), ('top_p', 1))
    ]
    name = f'{model.name}: {", ".join(shown)}'
    builder.row(
        model, seed, labels, measured, name=name, control=control,
        lines={
            'efficiency': {'kind': 'acceptance', **own},
            'latency': {'kind': 'latency', **own},
            'quality': quality,
        },
    )  # fmt: skip
    return name


def truncations(
    *,
    temperatures: Sequence[float] = (),
    top_k: Sequence[int] = (),
    top_p: Sequence[float] = (),
) -> tuple[decoding_lib.Sampling, ...]:
  """Samplings that differ from the target's own distribution in one respect.

  Args:
    temperatures: with all tokens.
    top_k: at temperature 1.
    top_p: at temperature 1.
  """
  sampling = decoding_lib.Sampling
  return (
      *(sampling(temperature=temperature) for temperature in temperatures),
      *(sampling(temperature=1.0, top_k=k) for k in top_k),
      *(sampling(temperature=1.0, top_p=p) for p in top_p),
  )
