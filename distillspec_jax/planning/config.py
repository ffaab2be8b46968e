"""What a plan is for: a pair, what is done with it, and where."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from distillspec_jax.core import check
from distillspec_jax.core import errors
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.models import transformer
from distillspec_jax.planning import topologies
from distillspec_jax.sampling import decoding as decoding_lib
from distillspec_jax.training import settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
  """One run on one slice.

  Attributes:
    topology: the slice.
    target: the model that decides; None plans fine-tuning.
    draft: the model that is trained, and drafts; `training.start` may set its
      dtype and remat otherwise.
    training: with the batch size over all chips and all sizes of the mesh.
    decoding: of the samplers.
    decode_batch_size: sequences that the samplers decode together, over all
      chips.
    input_length: tokens of inputs, S.
    output_length: tokens of labels and rollouts, T.
    train: whether the training step is planned.
    decode: whether the samplers are; not without a target.
  """

  topology: topologies.Topology
  target: config_lib.T5Config | None
  draft: config_lib.T5Config
  training: settings.Training
  decoding: decoding_lib.Decoding
  decode_batch_size: int
  input_length: int
  output_length: int
  train: bool = True
  decode: bool = True

  @property
  def mesh(self) -> jax.sharding.AbstractMesh:
    sizes = self.training.mesh
    return jax.sharding.AbstractMesh(
        (sizes.data, sizes.fsdp, sizes.tensor), mesh_lib.AXES
    )

  @property
  def mesh_text(self) -> str:
    return ' x '.join(map(str, self.mesh.axis_sizes))

  @property
  def batch_size(self) -> int:
    return self.training.steps.batch_size

  @property
  def micro_batches(self) -> int:
    return self.training.steps.micro_batches

  @property
  def remat(self) -> str:
    return self.training.start.configure(self.draft).remat

  @property
  def rows(self) -> int:
    """Rows of a micro-batch on a chip."""
    sizes = self.training.mesh
    ways = sizes.data * sizes.fsdp
    return self.batch_size // self.micro_batches // ways

  @property
  def draft_network(self) -> transformer.Transformer:
    training = self.training
    layout = layouts.rules(training.start.layout)
    return _network(training.configure(self.draft), layout)

  @property
  def target_network(self) -> transformer.Transformer | None:
    if self.target is None:
      return None
    return _network(self.target, layouts.rules(self.training.target.layout))

  def model_text(self, config: config_lib.T5Config | None) -> str:
    """How a model is computed: 'bfloat16, unrolled'."""
    if config is None:
      return '–'
    layers = 'scanned' if config.scan_layers else 'unrolled'
    kind = [] if config.weights == 'float' else [config.weights]
    return ', '.join([config.dtype, *kind, layers])

  @property
  def programs(self) -> tuple[str, ...]:
    """Names of the programs that a run consists of, see `lowering.Run`."""
    names = ('step',) if self.train else ()
    if self.decode and self.target is not None:
      names += ('speculative', 'autoregressive', 'encoder')
    return names

  def with_training(self, **groups: dict[str, Any]) -> PlanConfig:
    """With other values in groups of `training`.

    Example: `config.with_training(start={'remat': 'full'}, mesh={'fsdp': 4})`.

    Raises:
      UserError: the values do not fit each other.
    """
    changes = {
        name: dataclasses.replace(getattr(self.training, name), **values)
        for name, values in groups.items()
    }
    training = dataclasses.replace(self.training, **changes)
    return dataclasses.replace(self, training=training)

  def check(self) -> None:
    """Raises UserError for what cannot be planned on the slice."""
    chips, mesh = self.topology.chips, self.mesh
    if mesh.size != chips:
      sizes = ' x '.join(f'{name} {n}' for name, n in mesh.shape.items())
      raise errors.UserError(
          f'The mesh is {sizes} = {mesh.size} devices, but'
          f' {self.topology.name} has {chips}. Set sizes whose product is'
          ' that, or data = -1.'
      )
    mesh_lib.check_batch(mesh, self.batch_size // self.micro_batches)
    check.at_least(1, decode_batch_size=self.decode_batch_size)
    mesh_lib.check_batch(mesh, self.decode_batch_size)
    for network in filter(None, (self.target_network, self.draft_network)):
      if network.config.is_decoder_only:
        raise errors.UserError(
            'plan got a decoder-only model (num_encoder_layers = 0), but knows'
            ' encoder-decoder models only; give it one with an encoder.'
        )


@functools.lru_cache(maxsize=16)  # finding its shapes takes a trace
def _network(
    config: config_lib.T5Config, layout: layouts.Rules
) -> transformer.Transformer:
  return transformer.Transformer(config, layout)
