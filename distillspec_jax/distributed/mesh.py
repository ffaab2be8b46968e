"""The device mesh, and work that each device does on rows of its own.

One mesh with three axes, any of which may have size 1:

  data     rows of the batch
  fsdp     rows of the batch too; parameters are split over it and gathered
           when used
  tensor   heads, feed-forward width and vocabulary; rows, too, of a model that
           is not split over it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distillspec_jax.core import errors

AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """The mesh over all devices.

  Args:
    data: size of the data axis; -1 takes the devices that are left.
    fsdp: size of the fsdp axis.
    tensor: size of the tensor axis.
    devices: which; default: all of all processes.

  Raises:
    UserError: the sizes do not multiply to the number of devices, or have no
      place on the torus of a TPU slice.
  """
  count = jax.device_count() if devices is None else len(devices)
  for name, size in (('data', data), ('fsdp', fsdp), ('tensor', tensor)):
    if size < 1 and (name, size) != ('data', -1):
      raise errors.UserError(
          f'The mesh axis {name} is {size}; it must be at least 1.'
      )
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
        f'The mesh data {data} x fsdp {fsdp} x tensor {tensor} cannot be laid'
        ' over the slice: each of its axes must be a product of axes of the'
        ' torus.'
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
  """Raises UserError where rows cannot be split evenly over the mesh."""
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size % ways:
    raise errors.UserError(
        f'A batch of {batch_size} rows cannot be split evenly over the mesh,'
        f' whose data and fsdp axes make {ways}; use a multiple of {ways}.'
    )


def shard_over_batch(
    function: Callable[[Any, Any], Any],
    whole: Any,
    rows: Any,
    axes: Sequence[str] = ROWS,
    places: Any = 0,
    out_places: Any = 0,
) -> Any:
  """function(whole, rows), where each device sees its own rows alone.

  What the function does with its rows needs nothing of devices with other rows,
  so nothing is exchanged with them while it works: loops end where they end
  here, and the gradient of `whole` is added up once. Without a mesh it is just
  called.

  Args:
    function: returns a tree of arrays that begin with an axis of rows, or, for
      sums, of one row a call.
    whole: tree of arrays that every device needs wholly.
    rows: tree of arrays [B, ...], or with B at another place, but for the first
      array.
    axes: of the mesh, on which `function` exchanges nothing and over which the
      rows are spread, as far as they divide B; on the others arrays may be
      split inside it. Loops whose length depends on the rows need all axes.
    places: of B in the arrays of `rows`; a tree that `rows` begins with, as
      `in_axes` of `jax.vmap`.
    out_places: likewise, of what is returned.

  Returns:
    What the function returns, rows one after the other.
  """
  sizes = automatic()
  sizes = {axis: sizes[axis] for axis in axes if sizes.get(axis, 1) > 1}
  if not sizes:
    return function(whole, rows)
  count = jax.tree.leaves(rows)[0].shape[0]
  spread = dividing(count, sizes, tuple(sizes))
  at = lambda place: PartitionSpec(*[None] * place, spread)
  return jax.shard_map(
      function,
      in_specs=(PartitionSpec(), jax.tree.map(at, places)),
      out_specs=jax.tree.map(at, out_places),
      axis_names=set(sizes),
      check_vma=False,
  )(whole, rows)


def automatic() -> dict[str, int]:
  """Axes of the mesh that is set over which the compiler splits arrays.

  Returns:
    Their sizes; none without a mesh.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return {
      name: size
      for name, size in mesh.shape.items()
      if name not in mesh.manual_axes
  }


def dividing(
    size: int, sizes: Mapping[str, int], axes: Sequence[str]
) -> tuple[str, ...]:
  """The first of the mesh axes, as many as together divide a size.

  Args:
    size: of an axis of an array.
    sizes: of mesh axes.
    axes: of them, that it asks for.
  """
  axes = tuple(axes)
  while size % math.prod(sizes[axis] for axis in axes):
    axes = axes[:-1]
  return axes
