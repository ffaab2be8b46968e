"""A training method: which divergence, on whose tokens.

The methods of DistillSpec's comparison are points in this space (Zhou et al.
2023, https://arxiv.org/abs/2310.08461, table 1 and algorithm 1):

  fine-tuning     cross-entropy   fixed labels
  SeqKD           cross-entropy   target's tokens
  supervised KD   forward_kl      fixed labels
  ImitKD          forward_kl      half fixed labels, half draft's tokens
  f-Distill       total_variation half target's, half draft's tokens
  on-policy GKD   any             draft's tokens
"""

from __future__ import annotations

import dataclasses

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.losses import divergences
from distillspec_jax.models import config as config_lib
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import parallel as parallel_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """What is minimised, and on whose tokens.

  With probability `fixed_fraction` a step takes the labels of the dataset;
  otherwise, with probability `draft_fraction`, tokens that the draft samples
  from the step's inputs, and else tokens that the target samples. Nothing is
  differentiated through the sampling.

  Attributes:
    divergence: a name of `losses.divergences`, or a function of your own from
      (p_logits, q_logits) float[..., V] to float32[...]; or 'cross_entropy' on
      the labels, which needs no target.
    beta: of 'jsd', in (0, 1); None is its default, 0.5.
    fixed_fraction: lambda_1 of algorithm 1.
    draft_fraction: lambda_2 of algorithm 1.
    temperature: at which tokens are sampled for training. The paper samples at
      1; 0.5 favours greedy decoding.
    dropout_rate: of the model in training. Default: as configured in fine-
      tuning, and 0 in every method that needs a target: the draft is judged,
      and its tokens are sampled, without dropout.
    z_loss: weight of log(Z)^2 in the cross-entropy.
    label_smoothing: mass spread over all tokens in the cross-entropy.
    reduction: 'mean' over the tokens of a batch; 'sequence_mean', which first
      averages over the tokens of each sequence, as the paper does; or the
      'sum' over tokens, as in t5x.
    parallel: trains a draft that can also propose a block in one call; None: an
      ordinary one.
  """

  divergence: str | divergences.Divergence = 'cross_entropy'
  beta: float | None = None
  fixed_fraction: float = 1.0
  draft_fraction: float = 1.0
  temperature: float = 0.5
  dropout_rate: float | None = None
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  reduction: str = 'mean'
  parallel: parallel_lib.Parallel | None = None

  def __post_init__(self):
    check.in_interval(
        '[0, 1]',
        owner='Method',
        fixed_fraction=self.fixed_fraction,
        draft_fraction=self.draft_fraction,
    )
    check.in_interval(
        decoding_lib.TEMPERATURES, owner='Method', temperature=self.temperature
    )
    check.in_interval('[0, inf)', owner='Method', z_loss=self.z_loss)
    check.in_interval(
        '[0, 1)', owner='Method',
        label_smoothing=self.label_smoothing,
        dropout_rate=self.dropout_rate or 0.0,
    )  # fmt: skip
    check.one_of(
        ('mean', 'sequence_mean', 'sum'), owner='Method',
        reduction=self.reduction,
    )  # fmt: skip
    if not isinstance(self.parallel, parallel_lib.Parallel | None):
      raise errors.UserError(
          f'Method.parallel is {check.shown(self.parallel)}; give a Parallel,'
          ' or None.'
      )
    if self.is_distillation:
      self.divergence_function()
      if self.z_loss or self.label_smoothing:
        raise errors.UserError(
            'Method.z_loss and Method.label_smoothing belong to'
            f' cross_entropy; with {self.divergence_name} they must be 0.'
        )

  def divergence_function(
      self, covered: bool = False
  ) -> divergences.Divergence:
    """(p_logits, q_logits) -> float32[...].

    Args:
      covered: see `divergences.named`; a divergence of your own must be finite
        where q is 0 by itself.

    Raises:
      UserError: an unknown name, or a beta that has no use.
    """
    if callable(self.divergence):
      if self.beta is not None:
        raise errors.UserError(
            f'Method.beta is {self.beta}, but the divergence is a function,'
            f' {self.divergence_name}; bind what it needs itself.'
        )
      return self.divergence
    return divergences.named(self.divergence, self.beta, covered)

  def configure(self, config: config_lib.T5Config) -> config_lib.T5Config:
    """The configuration with the dropout that the model is trained with."""
    rate = self.dropout_rate
    if rate is None:
      rate = 0.0 if self.needs_target else config.dropout_rate
    config = dataclasses.replace(config, dropout_rate=rate)
    return self.with_mask_token(config)

  def with_mask_token(self, config: config_lib.T5Config) -> config_lib.T5Config:
    """The configuration of the trained model, which the run saves."""
    return self.parallel.configure(config) if self.parallel else config

  @property
  def divergence_name(self) -> str:
    if isinstance(self.divergence, str):
      return self.divergence
    return getattr(self.divergence, '__name__', repr(self.divergence))

  def describe(self) -> str:
    """The method in one line."""
    text = (
        f'{self.divergence_name}, fixed_fraction {self.fixed_fraction},'
        f' draft_fraction {self.draft_fraction}'
    )
    if self.parallel:
      text += f', parallel blocks of {self.parallel.block_length}'
    return text

  @property
  def is_distillation(self) -> bool:
    return self.divergence != 'cross_entropy'

  @property
  def samples_from_draft(self) -> bool:
    return self.fixed_fraction < 1.0 and self.draft_fraction > 0.0

  @property
  def samples_from_target(self) -> bool:
    return self.fixed_fraction < 1.0 and self.draft_fraction < 1.0

  @property
  def needs_target(self) -> bool:
    return self.is_distillation or self.samples_from_target
