"""The device mesh, and shard_map over the rows of a batch.

One mesh with three axes, any of which may have size 1:

  data     rows of the batch
  fsdp     rows of the batch too; parameters are sharded over it and gathered
           when they are used
  tensor   heads, feed-forward width and vocabulary; rows, for a model that is
           not sharded over it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distillspec_jax.core import check
from distillspec_jax.core import errors

AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')
_REPLICATED = PartitionSpec()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSizes:
  """Sizes of the mesh axes.

  Attributes:
    data: -1 takes the remaining devices.
    fsdp: see the module.
    tensor: likewise.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  def __post_init__(self):
    check.at_least(1, owner='mesh', fsdp=self.fsdp, tensor=self.tensor)
    if self.data != -1:
      check.at_least(1, owner='mesh', hint='or be -1', data=self.data)

  def create(self) -> Mesh:
    """The mesh over all devices of all processes."""
    return make_mesh(self.data, self.fsdp, self.tensor)


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """The mesh over all devices.

  Args:
    data: size of the data axis; -1 takes the remaining devices.
    fsdp: size of the fsdp axis.
    tensor: size of the tensor axis.
    devices: default: all devices of all processes.

  Raises:
    UserError: the product of the sizes is not the number of devices, or the
      mesh does not fit the torus of a TPU slice.
  """
  count = jax.device_count() if devices is None else len(devices)
  MeshSizes(data=data, fsdp=fsdp, tensor=tensor)
  if data == -1:
    data = max(1, count // (fsdp * tensor))
  if data * fsdp * tensor != count:
    raise errors.UserError(
        f'The mesh is data {data} x fsdp {fsdp} x tensor {tensor} ='
        f' {data * fsdp * tensor} devices, but there are {count}. Set sizes'
        ' whose product is that, or data = -1.'
    )
  try:
    return jax.make_mesh(
        (data, fsdp, tensor),
        AXES,
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )
  except NotImplementedError as error:
    raise errors.UserError(
        f'The mesh data {data} x fsdp {fsdp} x tensor {tensor} does not fit the'
        ' slice: each of its axes must be a product of axes of the torus.'
    ) from error


def using(sizes: str) -> contextlib.AbstractContextManager:
  """The mesh over all devices, within which models are loaded onto it.

  Args:
    sizes: 'DATA,FSDP,TENSOR'; DATA may be -1, see `make_mesh`.

  Raises:
    UserError: not three whole numbers, or not those of a mesh; or there are
      several processes.
  """
  parts = sizes.split(',')
  try:
    numbers = [int(part) for part in parts]
  except ValueError:
    numbers = []
  if len(numbers) != len(AXES):
    raise errors.UserError(
        f'The mesh is {sizes!r}; write the sizes of data, fsdp and tensor, as'
        " '1,8,1' or '-1,1,1'."
    )
  if jax.process_count() > 1:
    raise errors.UserError(
        f'The mesh is {sizes!r}, but there are {jax.process_count()} processes:'
        ' a mesh can be given where one process has all devices. Leave it out.'
    )
  return jax.set_mesh(make_mesh(*numbers))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
  """For arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(ROWS))


def check_batch(mesh: Mesh, batch_size: int) -> None:
  """Raises UserError unless the mesh divides the batch evenly."""
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size % ways:
    raise errors.UserError(
        f'batch size {batch_size} is not a multiple of {ways}, the product of'
        ' the mesh axes data and fsdp; use a multiple.'
    )


def shard_over_batch(
    function: Callable[[Any, Any], Any],
    replicated: Any,
    batched: Any,
    axes: Sequence[str] = ROWS,
    batch_axes: Any = 0,
    out_batch_axes: Any = 0,
    layout: Any = _REPLICATED,
) -> Any:
  """function(replicated, batched) by shard_map over the batch.

  The function needs nothing of other devices' rows, so nothing is exchanged
  while it works: a loop ends on each device when that device's own rows are
  done, and the gradient of `replicated` is summed over devices once. Without a
  mesh the function is simply called.

  Args:
    function: returns a tree of arrays that begin with an axis of rows, or, for
      sums, with one row for each call.
    replicated: tree of arrays that every device needs in full.
    batched: tree of arrays [B, ...], or with B at the axis that `batch_axes`
      gives; B is the first axis of the first array.
    axes: mesh axes to spread the rows over, as far as they divide B. On the
      other axes arrays may be sharded inside the function. A loop whose length
      depends on the rows needs all axes.
    batch_axes: axis of B in the arrays of `batched`; a tree prefix, as
      `in_axes` of `jax.vmap`.
    out_batch_axes: likewise, for what the function returns.
    layout: where `replicated` is sharded over `axes`, a tree prefix of specs.
      It is gathered inside, so that its gradient is reduce-scattered, and not
      summed in full on every device.

  Returns:
    What the function returns, with all rows.
  """
  sizes = automatic()
  sizes = {axis: sizes[axis] for axis in axes if sizes.get(axis, 1) > 1}
  if not sizes:
    return function(replicated, batched)
  rows = jax.tree.leaves(batched)[0].shape[0]
  spread = dividing(rows, sizes, tuple(sizes))
  spec = lambda axis: PartitionSpec(*[None] * axis, spread)

  def gather(spec, tree):
    for axis, names in enumerate(spec):
      if names is not None:
        tree = jax.tree.map(
            lambda x, axis=axis, names=names: jax.lax.all_gather(
                x, names, axis=axis, tiled=True
            ),
            tree,
        )
    return tree

  def local(replicated, batched):
    return function(jax.tree.map(gather, layout, replicated), batched)

  # `axis_names` leaves the other mesh axes to the compiler. `check_vma` would
  # demand proof that outputs agree where `spread` is shorter than `axes`.
  return jax.shard_map(
      local,
      in_specs=(layout, jax.tree.map(spec, batch_axes)),
      out_specs=jax.tree.map(spec, out_batch_axes),
      axis_names=set(sizes),
      check_vma=False,
  )(replicated, batched)


def automatic() -> dict[str, int]:
  """Axes of the current mesh that are the compiler's to shard over.

  Returns:
    Axis -> size; empty without a mesh, or where shard_map has taken the axes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return {
      name: size
      for name, size in mesh.shape.items()
      if name not in mesh.manual_axes
  }


def platform() -> str:
  """What programs are compiled for: 'cpu', 'tpu', 'gpu'.

  That of the current mesh, whose devices need not be there; without one, of
  JAX's default.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def dividing(
    size: int, sizes: Mapping[str, int], axes: Sequence[str]
) -> tuple[str, ...]:
  """The longest prefix of mesh axes whose product divides an array's axis.

  Args:
    size: of the array's axis.
    sizes: mesh axis -> size.
    axes: the mesh axes that were asked for.
  """
  axes = tuple(axes)
  while size % math.prod(sizes[axis] for axis in axes):
    axes = axes[:-1]
  return axes
