"""What a plan is of: a pair, what is done with it, and how it is laid out."""

from __future__ import annotations

import dataclasses

import jax

from distillspec_jax.core import errors
from distillspec_jax.distributed import layouts
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.models import config as config_lib
from distillspec_jax.planning import topologies
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """One run on one slice.

  Attributes:
    topology: the slice.
    target: the model that decides; None plans fine-tuning of the draft.
    draft: the model that is trained, and proposes.
    method: what is minimised, on whose tokens.
    optimizer: of the training.
    batch_size: rows a step, over all chips.
    micro_batches: parts of the batch.
    decode_batch_size: rows that the samplers decode together, over all chips.
    input_length: tokens of inputs, S.
    output_length: tokens of outputs, T.
    block_length: drafted tokens a call of the target.
    temperature: of the samplers.
    target_dtype: what the target's parameters are held in.
    data: size of the mesh's axis.
    fsdp: likewise.
    tensor: likewise.
    layout: how the draft lies on the mesh, see `core.layouts.rules`.
    target_layout: how the target does.
    trains: whether a step is planned.
    decodes: whether the samplers are; not without a target.
  """

  topology: topologies.Topology
  target: config_lib.T5Config | None
  draft: config_lib.T5Config
  method: method_lib.Method
  optimizer: optimizers.Optimizer
  batch_size: int
  micro_batches: int
  decode_batch_size: int
  input_length: int
  output_length: int
  block_length: int
  temperature: float
  target_dtype: str
  data: int
  fsdp: int
  tensor: int
  layout: layouts.Rules = layouts.SPLIT
  target_layout: layouts.Rules = layouts.SPLIT
  trains: bool = True
  decodes: bool = True

  @property
  def ways(self) -> int:
    """Parts into which rows are split."""
    return self.data * self.fsdp

  @property
  def mesh(self) -> str:
    return f'{self.data} x {self.fsdp} x {self.tensor}'

  def with_remat(self, remat: str) -> Setting:
    draft = dataclasses.replace(self.draft, remat=remat)
    return dataclasses.replace(self, draft=draft)

  def check(self) -> None:
    """Raises UserError for numbers that do not divide each other."""
    chips = self.topology.chips
    if self.ways * self.tensor != chips:
      raise errors.UserError(
          f'The mesh is data {self.data} x fsdp {self.fsdp} x tensor'
          f' {self.tensor} = {self.ways * self.tensor} devices, but'
          f' {self.topology.name} has {chips}. Set sizes whose product is'
          ' that, or mesh_data = -1.'
      )
    if self.micro_batches < 1 or self.batch_size % self.micro_batches:
      raise errors.UserError(
          f'micro_batches is {self.micro_batches}; it must divide the batch'
          f' size {self.batch_size}.'
      )
    mesh = jax.sharding.AbstractMesh(
        (self.data, self.fsdp, self.tensor), mesh_lib.AXES
    )
    mesh_lib.check_batch(mesh, self.batch_size // self.micro_batches)
    mesh_lib.check_batch(mesh, self.decode_batch_size)
