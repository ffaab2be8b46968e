"""What a training run is made of, in groups; `train` and `plan` share them.

Training(
    start=Start(checkpoint='runs/draft'),
    target=Target(checkpoint='runs/target'),
    method=Method(divergence='forward_kl', fixed_fraction=0.0),
    steps=Steps(num_steps=1000),
)
"""

from __future__ import annotations

import dataclasses
from typing import Any

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import int8
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers
from distillspec_jax.training import parallel as parallel_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """The model to train, and how it is placed and computed.

  Attributes:
    model: of a new model: a configuration, or a name of
      `models.config.published`, which then gets the task's vocabulary.
    checkpoint: folder of the model to start from instead.
    with_optimizer: continues with the step and the Adafactor state of
      `checkpoint`, a t5x checkpoint; num_steps counts its steps, too. t5x's
      loss is a sum over tokens: set Method.reduction = 'sum'.
    shared_encoder: trains a draft that reads the target's encoder output: the
      encoder of `model` is left out, that of `checkpoint` replaced by a
      projection fitted to it.
    layout: how parameters are laid out on the mesh: 'sharded' over the axes
      fsdp and tensor, over 'fsdp' alone, or 'replicated'; or pairs, see
      `distributed.layouts.rules`.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32
      in any case. Default: as configured.
    remat: what the backward pass recomputes to save memory: 'none', 'attention'
      (its weights alone), 'dots' (all but matrix products) or 'full'. Default:
      as configured.
    attention: 'fused' or 'xla', see `T5Config`. Default: as configured.
    scan_layers: whether layers are stacked and scanned, which compiles in the
      same time for any depth, or unrolled, which runs faster. Default: as
      configured.
  """

  model: config_lib.T5Config | str | None = None
  checkpoint: str | None = None
  with_optimizer: bool = False
  shared_encoder: bool = False
  layout: str | tuple = 'sharded'
  dtype: str | None = None
  remat: str | None = None
  attention: str | None = None
  scan_layers: bool | None = None

  def check(self) -> None:
    """Raises UserError unless there is one model to start from."""
    if (self.model is None) == (self.checkpoint is None):
      raise errors.UserError(
          f'Start.model is {self.model!r} and Start.checkpoint'
          f' {self.checkpoint!r}; give one of them: the configuration of a new'
          ' model, or the folder of one to start from.'
      )

  def __post_init__(self):
    layouts.rules(self.layout)

  def configure(self, config: config_lib.T5Config) -> config_lib.T5Config:
    """The configuration with what is set here."""
    names = 'dtype', 'remat', 'attention', 'scan_layers'
    return _with_fields(config, {name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """The target of a distillation, and how it is placed and computed.

  Attributes:
    checkpoint: its folder; an experiment sets it to that of its own target.
    layout: as in `Start`.
    dtype: of parameters and computation. Default: as saved.
    weights: 'int8' or 'int8_weight_only' store it in a quarter of the memory,
      see `checkpoints.loading.load`. Default: as saved.
    attention: as in `Start`. Default: as saved.
    scan_layers: as in `Start`. Default: as saved.
  """

  checkpoint: str | None = None
  layout: str | tuple = 'sharded'
  dtype: str | None = None
  weights: str | None = None
  attention: str | None = None
  scan_layers: bool | None = None

  def __post_init__(self):
    layouts.rules(self.layout)
    if self.weights is not None:
      check.one_of(int8.KINDS, owner='Target', weights=self.weights)

  def configure(self, config: config_lib.T5Config) -> config_lib.T5Config:
    """The configuration with what is set here."""
    names = 'dtype', 'weights', 'attention', 'scan_layers'
    return _with_fields(config, {name: getattr(self, name) for name in names})


def _with_fields(
    config: config_lib.T5Config, values: dict[str, Any]
) -> config_lib.T5Config:
  """The configuration with those values that are not None."""
  given = {name: value for name, value in values.items() if value is not None}
  return dataclasses.replace(config, **given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
  """How many steps, on how much data, and what is written how often.

  Attributes:
    num_steps: updates in all, those before a restart included.
    batch_size: examples (rows, if packed) per step, over all devices; default:
      32. As an attribute always a number.
    is_batch_size_given: whether it is not the default.
    micro_batches: equal parts of the batch, computed in turn to save memory.
    pack: several examples in a row; not where tokens are sampled.
    log_every: steps between lines of results.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: how many are kept.
  """

  num_steps: int
  batch_size: int | None = None
  micro_batches: int = 1
  pack: bool = False
  log_every: int = 10
  checkpoint_every: int = 500
  keep_checkpoints: int = 2

  def __post_init__(self):
    given = self.batch_size is not None
    object.__setattr__(self, 'is_batch_size_given', given)
    if not given:
      object.__setattr__(self, 'batch_size', 32)
    names = (
        'num_steps', 'batch_size', 'micro_batches', 'log_every',
        'checkpoint_every', 'keep_checkpoints',
    )  # fmt: skip
    check.at_least(1, **{name: getattr(self, name) for name in names})
    # Steps are counted in int32; a batch of more rows fits nowhere.
    check.at_least(1, max_value=2**31 - 1, num_steps=self.num_steps)
    check.at_least(1, max_value=2**20, batch_size=self.batch_size)
    if self.batch_size % self.micro_batches:
      raise errors.UserError(
          f'micro_batches is {self.micro_batches}; it must divide the batch'
          f' size {self.batch_size}.'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Validation:
  """How the model in training is judged; the best one is kept.

  Attributes:
    every: steps between validations.
    examples: how many are judged, the first of the split 'validation'.
    measure: 'greedy' or 'sampled' (at temperature 1): block efficiency; 'loss':
      what the method minimises, on the labels. Default: block efficiency as
      `decoding` says, and without a target the loss.
    decoding: with which block efficiency is measured, if there is a target;
      default: greedy, in blocks of up to five tokens; of a parallel draft in
      one call, in blocks of the length that it is trained for.
    keep: 'best': the latest step that is not worse than the best score by more
      than the standard error of their difference; or 'last'.
  """

  every: int = 100
  examples: int = 64
  measure: str | None = None
  decoding: decoding_lib.Decoding | None = None
  keep: str = 'best'

  def __post_init__(self):
    check.at_least(
        1, owner='Validation', every=self.every, examples=self.examples
    )
    check.one_of(
        (None, 'greedy', 'sampled', 'loss'), owner='Validation',
        measure=self.measure,
    )  # fmt: skip
    check.one_of(('best', 'last'), owner='Validation', keep=self.keep)

  def decoding_for(
      self, label_length: int, parallel: parallel_lib.Parallel | None = None
  ) -> decoding_lib.Decoding:
    """The decoding for outputs of this length, and a draft trained like this.

    Raises:
      UserError: its blocks are longer.
    """
    length = parallel.block_length if parallel else min(5, label_length)
    decoding = self.decoding or decoding_lib.Decoding(
        drafting=decoding_lib.Drafting(
            length=length, parallel=parallel is not None
        )
    )
    temperature = {'greedy': 0.0, 'sampled': 1.0}.get(self.measure or '')
    if temperature is not None:
      decoding = decoding.replace(temperature=temperature)
    decoding = decoding.with_default_length(label_length)
    decoding.check_speculative()
    return decoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """A training run, but for its folder, task and seed.

  Attributes:
    start: the model to train.
    target: where the method or a shared encoder needs one.
    method: what is minimised, and on whose tokens; default: fine-tuning.
    optimizer: an `optimizers.Optimizer`, or any object with its two functions
      `build(num_steps)` and `schedule(num_steps)`.
    steps: how many, on how much data.
    validation: how the model is judged.
    mesh: sizes of the device mesh.
  """

  start: Start
  steps: Steps
  target: Target | None = None
  method: method_lib.Method = method_lib.Method()
  optimizer: Any = optimizers.Optimizer()
  validation: Validation = Validation()
  mesh: mesh_lib.MeshSizes = mesh_lib.MeshSizes()

  def __post_init__(self):
    if isinstance(self.target, str):
      object.__setattr__(self, 'target', Target(checkpoint=self.target))

  def configure(self, config: config_lib.T5Config) -> config_lib.T5Config:
    """The configuration of the model that is trained."""
    return self.method.with_mask_token(self.start.configure(config))

  def check(self) -> None:
    """Raises UserError where the groups do not fit together."""
    self.start.check()
    method = self.method
    if self.target is not None and self.target.checkpoint is None:
      raise errors.UserError(
          'Target.checkpoint is missing; set it to the folder of the target, or'
          ' leave the target out.'
      )
    if method.needs_target and self.target is None:
      raise errors.UserError(
          f'The method ({method.describe()}) needs a target; set'
          ' Target.checkpoint to the folder of one.'
      )
    if self.start.shared_encoder and self.target is None:
      raise errors.UserError(
          'Start.shared_encoder is True, but there is no target whose encoder'
          ' to share; set Target.checkpoint to the folder of one.'
      )
    if self.validation.measure in ('greedy', 'sampled') and not self.target:
      raise errors.UserError(
          f'Validation.measure is {self.validation.measure!r}, a block'
          " efficiency, but there is no target; use 'loss', or set"
          ' Target.checkpoint to the folder of one.'
      )
    if self.steps.pack and method.reduction == 'sequence_mean':
      raise errors.UserError(
          "Steps.pack is True, but Method.reduction is 'sequence_mean', which"
          ' needs one sequence in a row. Set pack = False.'
      )
    if self.steps.pack and method.fixed_fraction < 1.0:
      raise errors.UserError(
          'Steps.pack is True, but the method samples tokens (fixed_fraction is'
          f' {method.fixed_fraction}), one example in a row. Set pack = False.'
      )
    if self.steps.pack and method.parallel:
      raise errors.UserError(
          'Steps.pack is True, but Method.parallel needs one sequence in a row.'
          ' Set pack = False.'
      )
    for name in ('build', 'schedule'):
      if not callable(getattr(self.optimizer, name, None)):
        raise errors.UserError(
            f'The optimizer {self.optimizer!r} has no function {name}; give an'
            ' Optimizer, or an object with build(num_steps) and'
            ' schedule(num_steps).'
        )
