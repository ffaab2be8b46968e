"""What is in a compiled TPU program: loops, work, exchanges between chips.

The compiler annotates every instruction with the cycles that it expects, and
exchanges with the chips that take part. XLA's own `cost_analysis` counts the
body of a loop once; here the loops are kept as a tree, to be counted as often
as they run.

  bytes of an HloModuleProto -> parse -> Computation -> block -> Block

A TPU turns matrix products into convolutions, fuses nearly everything, and
keeps arrays in fast memory where that saves the trip to HBM.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np

from distillspec_jax.planning import hlo_proto

# XLA's number of an element type -> its name and bits.
_ELEMENTS = {
    1: ('pred', 8), 2: ('s8', 8), 3: ('s16', 16), 4: ('s32', 32),
    5: ('s64', 64), 6: ('u8', 8), 7: ('u16', 16), 8: ('u32', 32),
    9: ('u64', 64), 10: ('f16', 16), 11: ('f32', 32), 12: ('f64', 64),
    15: ('c64', 64), 16: ('bf16', 16), 18: ('c128', 128), 21: ('s4', 4),
    22: ('u4', 4), 26: ('s2', 2), 27: ('u2', 2),
}  # fmt: skip
_TUPLE = 13
_CYCLES = re.compile(rb'"estimated_cycles":"(\d+)"')
# What the author of a kernel says that it needs.
_KERNEL = re.compile(
    rb'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"'
)
COLLECTIVES = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
)
# Instructions that move no bytes themselves.
_FREE = frozenset(
    (
        'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
        'while', 'conditional', 'call', 'after-all', 'partition-id',
        'replica-id', 'opt-barrier', 'custom-call', 'iota',
    )
)  # fmt: skip
# Values of these are arrays that exist already.
_NOT_ALLOCATED = frozenset(
    ('parameter', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'constant')
)
_FROM_HOST = frozenset(('infeed', 'outfeed', 'send', 'recv'))
_SLICING = frozenset(('dynamic-slice', 'slice', 'gather'))
_WORK = 4  # instructions of a block that are kept


class Array(NamedTuple):
  """The type of an array, and whether it is in HBM."""

  element: str
  dims: tuple[int, ...]
  bytes: int
  in_hbm: bool

  def __str__(self) -> str:
    return f'{self.element}[{",".join(map(str, self.dims))}]'


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
  """One instruction of a computation.

  Attributes:
    opcode: 'fusion', 'all-gather', ...
    arrays: the value's type; several where it is a tuple.
    operands: the instructions whose values it takes.
    called: the computations that it calls.
    cycles: expected by the compiler; 0 where it does not say.
    op_name: where in the Python program it comes from.
    proto: all else, see `hlo_proto`.
  """

  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[Instruction, ...]
  called: tuple[Computation, ...]
  cycles: int
  op_name: str
  proto: Any

  @property
  def bytes(self) -> int:
    return sum(array.bytes for array in self.arrays)

  @property
  def in_hbm(self) -> bool:
    return bool(self.arrays) and self.arrays[0].in_hbm


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
  """Instructions, operands before their users, the last of them the root."""

  name: str
  instructions: tuple[Instruction, ...]
  root: Instruction


class Work(NamedTuple):
  """An instruction that takes long: its cycles, its result, its origin."""

  cycles: int
  shape: str
  op_name: str


class Buffer(NamedTuple):
  """An array of a program: its type, bytes, and where it comes from."""

  shape: str
  bytes: int
  op_name: str


class Kernel(NamedTuple):
  """A kernel of Pallas, whose cycles the compiler does not tell."""

  flops: float
  hbm_bytes: int


class Collective(NamedTuple):
  """Data that chips exchange.

  Attributes:
    kind: one of `COLLECTIVES`.
    shape: what one chip exchanges: gathered, or not yet reduced.
    bytes: its size.
    group: numbers of the devices of the first group that exchanges; () is all.
    hidden: it overlaps with computation (it is asynchronous).
  """

  kind: str
  shape: str
  bytes: int
  group: tuple[int, ...]
  hidden: bool


@dataclasses.dataclass
class Block:
  """What runs in sequence: a program, or the body of a loop.

  Attributes:
    op_name: of the loop; '' for a program.
    trips: how often it runs; None where that depends on the data.
    cycles: expected for all but collectives, kernels and inner loops.
    flops: of matrix products; those of int8 count half, as they take half the
      time.
    hbm_bytes: read and written, also ahead of time.
    host_transfers: instructions that wait for the host.
    work: the instructions that take longest, without inner loops.
    collectives: of this block.
    kernels: likewise.
    inner: loops in it.
  """

  op_name: str
  trips: int | None
  cycles: int = 0
  flops: float = 0.0
  hbm_bytes: int = 0
  host_transfers: int = 0
  work: list[Work] = dataclasses.field(default_factory=list)
  collectives: list[Collective] = dataclasses.field(default_factory=list)
  kernels: list[Kernel] = dataclasses.field(default_factory=list)
  inner: list[Block] = dataclasses.field(default_factory=list)


def parse(data: bytes) -> Computation:
  """The computation that a serialised HloModuleProto starts with.

  Raises:
    ValueError: it has none.
  """
  module = hlo_proto.parse(data)
  computations: dict[int, Computation] = {}
  # XLA writes computations and operands before those that use them.
  for computation in module.computations:
    values: dict[int, Instruction] = {}
    for proto in computation.instructions:
      cycles = _CYCLES.search(proto.backend_config)
      values[proto.id] = Instruction(
          opcode=proto.opcode,
          arrays=tuple(_arrays(proto.shape)),
          operands=tuple(values[id_] for id_ in proto.operand_ids),
          called=tuple(
              computations[id_] for id_ in proto.called_computation_ids
          ),
          cycles=int(cycles.group(1)) if cycles else 0,
          op_name=proto.metadata.op_name,
          proto=proto,
      )
    computations[computation.id] = Computation(
        computation.name, tuple(values.values()), values[computation.root_id]
    )
  if module.entry_id not in computations:
    raise ValueError('The module has no entry computation.')
  return computations[module.entry_id]


def _arrays(shape: Any) -> Iterator[Array]:
  """The arrays of a type, those of tuples in their order."""
  if shape.element_type == _TUPLE:
    for part in shape.tuple_shapes:
      yield from _arrays(part)
  else:
    name, bits = _ELEMENTS.get(shape.element_type, ('?', 0))
    dims = tuple(shape.dimensions)
    # Space 1 is the fast memory (VMEM), others hold flags and scalars.
    in_hbm = shape.layout.memory_space == 0
    yield Array(name, dims, math.prod(dims) * bits // 8, in_hbm)


def block(
    computation: Computation, op_name: str = '', trips: int | None = 1
) -> Block:
  """The program, or the body of a loop, as a tree of loops."""
  result = Block(op_name, trips)
  for instruction in computation.instructions:
    opcode = instruction.opcode
    if opcode == 'while':
      body, _ = instruction.called
      result.inner.append(block(body, instruction.op_name, _trips(instruction)))
      continue
    if opcode in ('conditional', 'call'):
      # Of the branches the one that takes longest.
      branches = [block(branch) for branch in instruction.called]
      result.inner.append(max(branches, key=_cycles))
      continue
    result.cycles += instruction.cycles
    shape = ' '.join(map(str, instruction.arrays[:3]))
    result.work.append(Work(instruction.cycles, shape, instruction.op_name))
    result.flops += _flops(instruction)
    result.hbm_bytes += _hbm_bytes(instruction)
    result.collectives += _collectives(instruction)
    kernel = _kernel(instruction)
    if kernel is not None:
      result.kernels.append(kernel)
      result.flops += kernel.flops
      result.hbm_bytes += kernel.hbm_bytes
    result.host_transfers += opcode in _FROM_HOST
  result.work = sorted(result.work, reverse=True)[:_WORK]
  return result


def _cycles(each: Block) -> int:
  return each.cycles + sum((b.trips or 1) * _cycles(b) for b in each.inner)


def _trips(loop: Instruction) -> int | None:
  """Trips of a loop that counts up to a constant; else None."""
  test = loop.called[1].root
  if test.opcode != 'compare' or test.proto.comparison_direction != 'LT':
    return None
  counter, limit = test.operands
  # The counter is an element of the tuple that the loop starts with.
  start = loop.operands[0]
  if start.opcode == 'tuple' and counter.opcode == 'get-tuple-element':
    start = start.operands[counter.proto.tuple_index]
  while start.opcode in ('copy', 'bitcast'):
    (start,) = start.operands
  last = _number(limit)
  return None if last is None else last - (_number(start) or 0)


def _number(value: Instruction) -> int | None:
  """The value of a constant that is a whole number; None for all else."""
  literal = value.proto.literal
  for number in (*literal.s32s, *literal.s64s, *literal.u32s, *literal.u64s):
    return number
  return None


def largest(program: Computation, limit: int) -> tuple[Buffer, ...]:
  """The largest arrays that a program allocates in HBM, at most `limit`."""
  buffers = {
      Buffer(str(array), array.bytes, instruction.op_name)
      for computation in _with_loops(program)
      for instruction in computation.instructions
      if instruction.opcode not in _NOT_ALLOCATED
      for array in instruction.arrays
      if array.in_hbm
  }
  ordered = sorted(buffers, key=lambda buffer: (-buffer.bytes, buffer))
  return tuple(ordered[:limit])


def _with_loops(computation: Computation) -> Iterator[Computation]:
  """A computation and the bodies of its loops; what is fused has no buffers."""
  yield computation
  for instruction in computation.instructions:
    if instruction.opcode == 'while':
      yield from _with_loops(instruction.called[0])


def _kernel(instruction: Instruction) -> Kernel | None:
  """What a kernel needs: FLOPs as its author says, and at most these bytes."""
  if instruction.proto.custom_call_target != 'tpu_custom_call':
    return None
  values = instruction, *instruction.operands
  size = sum(x.bytes for value in values for x in value.arrays if x.in_hbm)
  estimate = _KERNEL.search(instruction.proto.backend_config)
  if estimate is None:
    return Kernel(0.0, size)
  flops, accessed = map(int, estimate.groups())
  return Kernel(flops, min(size, accessed) if accessed else size)


# FLOPs.


def _flops(instruction: Instruction) -> float:
  """Of the matrix products in an instruction, two per multiplication."""
  if instruction.opcode in ('fusion', 'async-start'):
    return sum(map(_flops, instruction.called[0].instructions))
  if instruction.opcode not in ('convolution', 'dot'):
    return 0.0
  elements = {operand.arrays[0].element for operand in instruction.operands}
  return _products(instruction) * (0.5 if elements == {'s8'} else 1.0)


def _products(instruction: Instruction) -> float:
  proto, out = instruction.proto, instruction.arrays[0].dims
  left, right = (operand.arrays[0].dims for operand in instruction.operands)
  if instruction.opcode == 'dot':
    depth = math.prod(left[axis] for axis in proto.dot.lhs_contracting)
    return 2.0 * math.prod(out) * depth
  axes, meeting = proto.convolution, 1
  for of_left, of_right, of_out, window in zip(
      axes.input_spatial,
      axes.kernel_spatial,
      axes.output_spatial,
      proto.window.dimensions,
  ):
    meeting *= _meeting(left[of_left], right[of_right], out[of_out], window)
  features = right[axes.kernel_input_feature]
  features *= right[axes.kernel_output_feature]
  return 2.0 * meeting * features * out[axes.output_batch]


def _meeting(base: int, kernel: int, out: int, window: Any) -> int:
  """(output, kernel) positions of one axis that meet an element of the base.

  The others meet padding, or the gaps that dilation leaves, and cost nothing. A
  batched product is such a convolution: its batch is a spatial axis, dilated so
  that each kernel meets its own part of the base alone.
  """
  dilation = window.base_dilation or 1
  position = (
      np.arange(out)[:, None] * (window.stride or 1)
      + np.arange(kernel)[None] * (window.window_dilation or 1)
      - window.padding_low
  )
  inside = (position >= 0) & (position <= (base - 1) * dilation)
  return int(np.sum(inside & (position % dilation == 0)))


# Bytes read and written.


def _hbm_bytes(instruction: Instruction) -> int:
  """Bytes that an instruction reads from HBM and writes to it."""
  opcode, operands = instruction.opcode, instruction.operands
  if opcode in _FREE or opcode.endswith('-done'):
    return 0
  if opcode == 'copy-start':
    ends = instruction.arrays[0], operands[0].arrays[0]
    return instruction.arrays[0].bytes * sum(end.in_hbm for end in ends)
  if opcode == 'async-start':
    return sum(map(_hbm_bytes, instruction.called[0].instructions))
  if opcode == 'fusion':
    (fused,) = instruction.called
    read = sum(
        _read(fused, number, operand.bytes)
        for number, operand in enumerate(operands)
        if operand.in_hbm
    )
    return read + _written(fused.root, instruction.arrays)
  if opcode == 'dynamic-update-slice':  # in place
    update = operands[1]
    return update.bytes * (update.in_hbm + instruction.in_hbm)
  written = sum(array.bytes for array in instruction.arrays if array.in_hbm)
  if opcode in _SLICING:
    return written + (instruction.bytes if operands[0].in_hbm else 0)
  return written + sum(operand.bytes for operand in operands if operand.in_hbm)


def _read(fused: Computation, number: int, size: int) -> int:
  """Bytes that a fused computation reads of a parameter: all, or slices."""
  for each in fused.instructions:
    if each.opcode == 'parameter' and each.proto.parameter_number == number:
      return min(size, _used(fused, each, size))
  return 0


def _used(fused: Computation, value: Instruction, size: int) -> int:
  """Bytes of a value of `size` that its users in the computation need."""
  used = 0
  for user in fused.instructions:
    if value not in user.operands:
      continue
    is_first = user.operands[0] is value
    if user.opcode in _SLICING and is_first:
      used += user.bytes
    elif user.opcode == 'dynamic-update-slice' and is_first:
      continue  # written in place
    elif user.opcode == 'bitcast':
      used += _used(fused, user, size)
    elif user.opcode == 'fusion':
      number = user.operands.index(value)
      used += _read(user.called[0], number, size)
      if _is_parameter(user.called[0].root, number):  # it has another type only
        used += _used(fused, user, size)
    elif user.opcode != 'tuple':
      return size
  return used


def _is_parameter(value: Instruction, number: int) -> bool:
  while value.opcode == 'bitcast':
    (value,) = value.operands
  return value.opcode == 'parameter' and value.proto.parameter_number == number


def _written(value: Instruction, arrays: Sequence[Array]) -> int:
  """Bytes that a fused computation writes to HBM: arrays, or slices of them.

  Args:
    value: its root, or a part of it.
    arrays: in which the value ends up.
  """
  if value.opcode == 'tuple':
    parts = zip(value.operands, arrays)
    return sum(_written(part, (array,)) for part, array in parts)
  if not arrays[0].in_hbm or value.opcode == 'parameter':
    return 0
  if value.opcode == 'bitcast':
    return _written(value.operands[0], arrays)
  if value.opcode == 'dynamic-update-slice':
    return value.operands[1].bytes
  if value.opcode == 'fusion':
    return _written(value.called[0].root, arrays)
  return sum(array.bytes for array in arrays)


# Exchanges between chips.


def _collectives(instruction: Instruction) -> list[Collective]:
  """The exchanges that an instruction starts."""
  opcode = instruction.opcode
  if opcode in ('fusion', 'async-start'):
    (inner,) = instruction.called
    # These compute while an exchange is under way that another one started.
    under_way = 'async-collective-done', 'async_collective_fusion'
    name, changes = instruction.proto.name, {}
    if name.startswith(under_way) or inner.name.startswith(under_way):
      return []
    if inner.name.startswith('all-reduce-scatter'):
      changes['kind'] = 'reduce-scatter'
    if opcode == 'async-start' or name.startswith('async-collective-start'):
      changes['hidden'] = True
    inside = (c for each in inner.instructions for c in _collectives(each))
    return [collective._replace(**changes) for collective in inside]
  kind = opcode.removesuffix('-start')
  if kind not in COLLECTIVES:
    return []
  operands = instruction.operands
  arrays = [array for operand in operands for array in operand.arrays]
  if kind == 'all-gather':  # its result is the larger side
    arrays = list(instruction.arrays)
    if opcode != kind:  # (operands, results)
      arrays = arrays[len(operands) : 2 * len(operands)]
  return [
      Collective(
          kind,
          ' '.join(map(str, arrays)),
          sum(array.bytes for array in arrays),
          first_group(instruction.proto),
          opcode != kind,
      )
  ]


def first_group(proto: Any) -> tuple[int, ...]:
  """Devices of the first group that exchanges data; () where all do.

  XLA has four ways to write groups: lists of devices, pairs of them, an array
  of all devices whose rows are the groups, and axes of a mesh.

  Args:
    proto: of a collective.
  """
  for pair in proto.source_target_pairs:
    return pair.source, pair.target
  for group in proto.replica_groups or proto.device_list.replica_groups:
    return tuple(group.ids)
  for iota in (proto.iota_groups, proto.device_list.iota_groups):
    if iota.count:
      return tuple(_iota(iota)[: iota.size].tolist())
  if proto.mesh_groups.axes:
    return _along_axes(proto.mesh_groups)
  return ()


def _along_axes(groups: Any) -> tuple[int, ...]:
  """The devices that differ from the first along some axes of a mesh only.

  An axis may take part with a factor of its size alone. An axis of 8 devices is
  then seen as three axes, before x size x after: of (2, 2, 2), `pre_size` 2 and
  `size` 2 name the middle one, along which devices 0 and 2 exchange data.
  """
  sizes = [axis.size for axis in groups.mesh.axes]
  parts = [(size, 1) for size in sizes]  # an axis that does not take part
  for axis in groups.axes:
    size = axis.part.size or sizes[axis.index]
    parts[axis.index] = axis.part.pre_size or 1, size
  shape, place = [], []
  for size, (before, part) in zip(sizes, parts):
    shape += [before, part, size // before // part]
    place += [0, slice(None), 0]
  mesh = groups.mesh
  if mesh.iota.dims:
    devices = _iota(mesh.iota)
  else:
    devices = np.array(mesh.device_ids or range(math.prod(sizes)))
  return tuple(devices.reshape(shape)[tuple(place)].ravel().tolist())


def _iota(iota: Any) -> np.ndarray:
  """All devices, as an array of some shape has them once it is transposed."""
  devices = np.arange(math.prod(iota.dims)).reshape(iota.dims)
  return devices.transpose(list(iota.order) or None).ravel()
