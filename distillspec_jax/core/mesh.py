"""The device mesh, and where arrays with named axes live on it.

One mesh with three axes, any of which may have size 1:

  data     rows of the batch
  fsdp     rows of the batch too; parameters are split over it and gathered
           when used
  tensor   heads, feed-forward width and vocabulary; rows, too, of a model that
           is not split over it

A parameter or activation names its axes (embed, mlp, heads, ...), as in t5x;
rules say on which mesh axis each of them lies. Models have rules of their own:
a large target may be split where its small draft is whole on every device.
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

# (logical axis, mesh axes or None for replicated), ...
Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

SPLIT: Rules = (
    ('batch', ROWS),
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


def _only(kept: str | None) -> Rules:
  """Parameters on one axis or on none, rows on all."""
  layout = {name: axis if axis == kept else None for name, axis in SPLIT}
  return tuple((layout | {'batch': AXES}).items())


_LAYOUTS: dict[str, Rules] = {
    'split': SPLIT,
    'fsdp': _only('fsdp'),
    'whole': _only(None),
}


def rules(layout: str | Sequence[tuple[str, Any]]) -> Rules:
  """The rules of a layout.

  Args:
    layout: 'split', where parameters lie over the axes fsdp and tensor; 'fsdp',
      where they lie over that one alone; 'whole', where every device has all of
      them; these two spread rows over all axes. Or pairs of a logical axis and
      mesh axes (a name, several, or None) that differ from 'split'.

  Raises:
    UserError: an unknown layout, logical axis or mesh axis.
  """
  if isinstance(layout, str):
    if layout not in _LAYOUTS:
      raise errors.UserError(
          f"Unknown layout {layout!r}; use 'split', 'fsdp', 'whole', or pairs"
          " such as (('embed', None),)."
      )
    return _LAYOUTS[layout]
  changed: dict[str, Any] = dict(SPLIT)
  for pair in layout:
    if len(pair) != 2 or pair[0] not in changed:
      raise errors.UserError(
          f'A layout has {pair!r}; it must be a logical axis'
          f' ({", ".join(changed)}) and the mesh axes that it lies on.'
      )
    name, axes = pair
    for axis in _several(axes):
      if axis not in AXES:
        raise errors.UserError(
            f'A layout puts {name!r} on the mesh axis {axis!r}; there are'
            f' {", ".join(AXES)}.'
        )
    changed[name] = tuple(axes) if isinstance(axes, list) else axes
  return tuple(changed.items())


def gathered(layout: Rules) -> Rules:
  """The rules with nothing but rows on the axis fsdp."""

  def without(axes):
    kept = tuple(axis for axis in _several(axes) if axis != 'fsdp')
    return kept or None

  return tuple(
      (name, axes if name == 'batch' else without(axes))
      for name, axes in layout
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


def by_rows(
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
  sizes = _automatic(jax.sharding.get_abstract_mesh())
  sizes = {axis: sizes[axis] for axis in axes if sizes.get(axis, 1) > 1}
  if not sizes:
    return function(whole, rows)
  count = jax.tree.leaves(rows)[0].shape[0]
  (spread,) = spec(sizes, (count,), ('batch',), (('batch', tuple(sizes)),))
  at = lambda place: PartitionSpec(*[None] * place, spread)
  return jax.shard_map(
      function,
      in_specs=(PartitionSpec(), jax.tree.map(at, places)),
      out_specs=jax.tree.map(at, out_places),
      axis_names=set(sizes),
      check_vma=False,
  )(whole, rows)


def lies_on(layout: Rules, axis: str) -> bool:
  """Whether a layout splits more than rows on the axis of the mesh in use."""
  sizes = _automatic(jax.sharding.get_abstract_mesh())
  return sizes.get(axis, 1) > 1 and any(
      axis in _several(axes) for name, axes in layout if name != 'batch'
  )


def _automatic(mesh: Any) -> dict[str, int]:
  """Axes that the compiler splits arrays over, and their sizes."""
  return {
      name: size
      for name, size in mesh.shape.items()
      if name not in mesh.manual_axes
  }


def spec(
    sizes: Mapping[str, int],
    shape: Sequence[int],
    names: Sequence[str | None],
    layout: Rules,
) -> PartitionSpec:
  """Where the axes of an array lie.

  An axis whose size the mesh does not divide lies on fewer mesh axes or on
  none, and so does the second axis that asks for the same one.

  Args:
    sizes: of the mesh's axes; what lies on others is replicated.
    shape: of the array.
    names: its logical axes, from the first on.
    layout: the rules.
  """
  table, used, parts = dict(layout), set(), []
  for size, name in zip(shape, (*names, *[None] * len(shape))):
    axes = tuple(
        axis
        for axis in _several(table.get(name))
        if axis in sizes and axis not in used
    )
    while axes and size % math.prod(sizes[axis] for axis in axes):
      axes = axes[:-1]
    used.update(axes)
    parts.append(axes[0] if len(axes) == 1 else axes or None)
  return PartitionSpec(*parts)


def constrain(
    array: jax.Array, names: Sequence[str | None], layout: Rules
) -> jax.Array:
  """The array, laid out on the mesh that is set; without one, as it is.

  Args:
    array: traced.
    names: its logical axes.
    layout: the rules; without any the array stays as it is, too.
  """
  sizes = _automatic(jax.sharding.get_abstract_mesh())
  if math.prod(sizes.values()) == 1 or not layout:
    return array
  return jax.lax.with_sharding_constraint(
      array, spec(sizes, array.shape, names, layout)
  )


def shardings(
    mesh: Mesh, abstract: Any, logical_axes: Any, layout: Rules = SPLIT
) -> Any:
  """A sharding for every leaf.

  Args:
    mesh: from `make_mesh`.
    abstract: tree of arrays or `ShapeDtypeStruct`.
    logical_axes: tree of `PartitionSpec` of logical names, same structure.
    layout: the rules.

  Returns:
    A tree of `NamedSharding`; see `spec`.
  """
  return jax.tree.map(
      lambda array, names: NamedSharding(
          mesh, spec(mesh.shape, array.shape, tuple(names), layout)
      ),
      abstract,
      logical_axes,
  )


def _several(axes: str | Sequence[str] | None) -> tuple[str, ...]:
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)
