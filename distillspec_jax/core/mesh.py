"""The device mesh, and where arrays with named axes live on it.

One mesh with three axes, any of which may have size 1:

  data     rows of the batch
  fsdp     rows of the batch too; parameters are split over it and gathered
           when used
  tensor   heads, feed-forward width and vocabulary

A parameter or activation names its axes (embed, mlp, heads, ...), as in t5x;
`RULES` says on which mesh axis each of them lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distillspec_jax.core import errors

AXES = ('data', 'fsdp', 'tensor')

# Logical axis -> mesh axes, None is replicated.
RULES = (
    ('batch', ('data', 'fsdp')),
    ('length', None),
    ('embed_activation', None),
    ('embed', 'fsdp'),
    ('encoded', None),
    ('vocab', 'tensor'),
    ('mlp', 'tensor'),
    ('heads', 'tensor'),
    ('joined_kv', 'tensor'),
    ('kv', None),
    ('relpos_buckets', None),
    ('layers', None),
)


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
    devices: to lay it over; default: all there are.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  if devices is None:
    devices = jax.devices()
  count = len(devices)
  if data == -1:
    data = max(1, count // (fsdp * tensor))
  if data * fsdp * tensor != count:
    raise errors.UserError(
        f'The mesh is data {data} x fsdp {fsdp} x tensor {tensor} ='
        f' {data * fsdp * tensor} devices, but there are {count}. Set sizes'
        ' whose product is that, or data = -1.'
    )
  return jax.make_mesh(
      (data, fsdp, tensor),
      AXES,
      axis_types=(AxisType.Auto,) * 3,
      devices=devices,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
  """For arrays whose first axis is the batch."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def check_batch(mesh: Mesh, batch_size: int) -> None:
  """Raises UserError where rows cannot be split evenly over the mesh."""
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size % ways:
    raise errors.UserError(
        f'A batch of {batch_size} rows cannot be split evenly over the mesh,'
        f' whose data and fsdp axes make {ways}; use a multiple of {ways}.'
    )


def shardings(mesh: Mesh, abstract: Any, logical_axes: Any) -> Any:
  """A sharding for every leaf.

  Args:
    mesh: from `make_mesh`.
    abstract: tree of arrays or `ShapeDtypeStruct`.
    logical_axes: tree of `PartitionSpec` of logical names, same structure.

  Returns:
    A tree of `NamedSharding`. An axis whose size the mesh does not divide is
    replicated, and so is the second axis that asks for the same mesh axis.
  """
  rules = dict(RULES)

  def leaf(array, names):
    used: set[str] = set()
    spec = []
    for size, name in zip(array.shape, tuple(names) + (None,) * array.ndim):
      axis = rules.get(name)
      fits = (
          isinstance(axis, str)
          and axis not in used
          and size % mesh.shape[axis] == 0
      )
      spec.append(axis if fits else None)
      if fits:
        used.add(axis)
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree.map(leaf, abstract, logical_axes)
