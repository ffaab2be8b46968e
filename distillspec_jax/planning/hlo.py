"""What is in the text of a compiled TPU program: loops, work, collectives.

XLA prints the optimised program as computations of one instruction a line, in
the order in which they run, with the layout and memory of every array, what the
compiler expects an instruction to take (`estimated_cycles`), and the chips that
talk to each other. XLA's own `cost_analysis` counts the body of a loop once;
here the loops are kept as a tree, to be counted as often as they run.

A TPU turns matrix products into convolutions, fuses nearly everything, and
holds arrays in fast memory, marked S(1), where that spares the trip to HBM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np

_BITS = {
    'pred': 8, 's2': 2, 'u2': 2, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16,
    'u16': 16, 'bf16': 16, 'f16': 16, 's32': 32, 'u32': 32, 'f32': 32,
    's64': 64, 'u64': 64, 'f64': 64, 'c64': 64, 'c128': 128,
}  # fmt: skip
COLLECTIVES = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
)
# What moves no bytes of itself.
_FREE = frozenset(
    (
        'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast',
        'while', 'conditional', 'call', 'after-all', 'partition-id',
        'replica-id', 'opt-barrier', 'copy-done', 'slice-done', 'async-done',
        'custom-call', 'iota',
    )
)  # fmt: skip
_FROM_HOST = frozenset(('infeed', 'outfeed', 'send', 'recv'))
_WORK = 4  # instructions of a block that are kept
_SLICING = frozenset(('dynamic-slice', 'slice', 'gather'))


class Array(NamedTuple):
  """The type of a value, of 'bf16[8,512]{1,0:T(8,128)(2,1)S(1)}'."""

  dtype: str
  dims: tuple[int, ...]
  in_hbm: bool

  @property
  def bytes(self) -> int:
    return math.prod(self.dims) * _BITS.get(self.dtype, 0) // 8

  def __str__(self) -> str:
    return f'{self.dtype}[{",".join(map(str, self.dims))}]'


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: of the value.
    arrays: the value's type; several where it is a tuple.
    opcode: 'fusion', 'all-gather', ...
    operands: names of values; the text in brackets where there are none.
    rest: of the line, its attributes.
  """

  name: str
  arrays: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  rest: str

  @property
  def bytes(self) -> int:
    return sum(array.bytes for array in self.arrays)

  @property
  def in_hbm(self) -> bool:
    return bool(self.arrays) and self.arrays[0].in_hbm

  @property
  def cycles(self) -> int:
    """That the compiler expects; 0 where it does not say."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
    return int(found.group(1)) if found else 0

  @property
  def op_name(self) -> str:
    """Where in the Python program it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found.group(1) if found else ''

  def called(self, attribute: str) -> str:
    """The computation that an attribute names, '' if there is none."""
    found = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.rest)
    return found.group(1) if found else ''


@dataclasses.dataclass
class Computation:
  """Instructions by name, in the order in which they run."""

  instructions: dict[str, Instruction]
  root: str = ''

  def __iter__(self) -> Iterator[Instruction]:
    return iter(self.instructions.values())


class Module(NamedTuple):
  """A program: computations by name, and which of them it starts with."""

  computations: dict[str, Computation]
  entry: str


class Work(NamedTuple):
  """An instruction that takes long: its cycles, what it makes, from where."""

  cycles: int
  shape: str
  op_name: str


class Collective(NamedTuple):
  """Data that chips exchange.

  Attributes:
    kind: of `COLLECTIVES`.
    shape: what is exchanged, of one chip: gathered, or not yet reduced.
    bytes: of it.
    group: numbers of the devices of the first group that exchanges; () is all.
    hidden: it runs beside computation (asynchronously).
    op_name: where in the Python program it comes from.
  """

  kind: str
  shape: str
  bytes: int
  group: tuple[int, ...]
  hidden: bool
  op_name: str


@dataclasses.dataclass
class Block:
  """What runs in a row: a program, or the body of a loop.

  Attributes:
    op_name: of the loop; '' for a program.
    trips: how often it runs; None where only the data tells.
    cycles: that the compiler expects of all but collectives and inner loops.
    flops: of matrix products.
    hbm_bytes: read and written.
    prefetched_bytes: of them, copied beside computation.
    instructions: that compute or move something.
    host_transfers: instructions that wait for the host.
    work: the instructions that take longest, without inner loops.
    collectives: of this block.
    inner: loops in it.
  """

  op_name: str
  trips: int | None
  cycles: int = 0
  flops: float = 0.0
  hbm_bytes: int = 0
  prefetched_bytes: int = 0
  instructions: int = 0
  host_transfers: int = 0
  work: list[Work] = dataclasses.field(default_factory=list)
  collectives: list[Collective] = dataclasses.field(default_factory=list)
  inner: list[Block] = dataclasses.field(default_factory=list)

  def walk(self) -> Iterator[Block]:
    """This block and all in it."""
    yield self
    for each in self.inner:
      yield from each.walk()


def parse(text: str) -> Module:
  """The computations of a program's text.

  Raises:
    ValueError: it has no entry.
  """
  computations: dict[str, Computation] = {}
  current, entry = None, ''
  for line in text.splitlines():
    if not line.startswith(' '):
      header = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
      if header:
        current = computations.setdefault(header.group(2), Computation({}))
        entry = header.group(2) if header.group(1) else entry
      continue
    found = re.match(r'\s+(ROOT )?%?([\w.\-]+) = ', line)
    if found is None or current is None:
      continue
    instruction = _instruction(found.group(2), line[found.end() :])
    current.instructions[instruction.name] = instruction
    if found.group(1):
      current.root = instruction.name
  if not entry:
    raise ValueError('The text of the program has no ENTRY computation.')
  return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
  """From 'f32[8]{0} add(%a, %b), metadata=...'."""
  end = _closing(text, 0) + 1 if text.startswith('(') else text.index(' ')
  arrays = tuple(
      Array(
          dtype,
          tuple(int(n) for n in re.findall(r'\d+', dims)),
          'S(' not in layout,  # S(1) is VMEM, others are flags and scalars
      )
      for dtype, dims, layout in re.findall(
          r'\b([a-z]+\d*)\[([\d,<=]*)\](\{[^}]*\})?', text[:end]
      )
  )
  opening = text.index('(', end)
  closing = _closing(text, opening)
  inside = text[opening + 1 : closing]
  operands = tuple(re.findall(r'%([\w.\-]+)', inside)) or (inside.strip(),)
  opcode = text[end:opening].strip()
  return Instruction(name, arrays, opcode, operands, text[closing + 1 :])


_BRACKET = re.compile(r'[()]')


def _closing(text: str, start: int) -> int:
  """Place of the bracket that closes the one at `start`."""
  depth = 0
  for bracket in _BRACKET.finditer(text, start):
    depth += 1 if bracket.group() == '(' else -1
    if depth == 0:
      return bracket.start()
  raise ValueError(f'A bracket is not closed in {text[start:start + 80]!r}.')


def block(module: Module) -> Block:
  """The program as a tree of loops."""
  return _block(module, module.entry, '', 1)


def _block(module: Module, name: str, op_name: str, trips: int | None) -> Block:
  made = Block(op_name, trips)
  computation = module.computations[name]
  for instruction in computation:
    opcode = instruction.opcode
    if opcode == 'while':
      body = instruction.called('body')
      count = _trips(module, instruction.called('condition'))
      made.inner.append(_block(module, body, instruction.op_name, count))
      continue
    if opcode in ('conditional', 'call'):
      # Of branches the one that takes longest.
      parts = [_block(module, b, '', 1) for b in _branches(instruction)]
      made.inner.append(max(parts, key=_cycles))
      continue
    made.cycles += instruction.cycles
    made.work.append(_work(instruction))
    made.flops += _flops(module, computation, instruction)
    moved = _hbm_bytes(module, computation, instruction)
    made.hbm_bytes += moved
    if opcode in ('copy-start', 'slice-start'):
      made.prefetched_bytes += moved
    made.collectives += _collectives(module, computation, instruction)
    made.instructions += opcode not in _FREE
    made.host_transfers += opcode in _FROM_HOST
  made.work = sorted(made.work, reverse=True)[:_WORK]
  return made


def _work(instruction: Instruction) -> Work:
  shape = ' '.join(map(str, instruction.arrays[:3]))
  return Work(instruction.cycles, shape, instruction.op_name)


def _cycles(each: Block) -> int:
  return each.cycles + sum((b.trips or 1) * _cycles(b) for b in each.inner)


def _branches(instruction: Instruction) -> list[str]:
  listed = re.search(r'branch_computations=\{([^}]*)\}', instruction.rest)
  if listed:
    return re.findall(r'[\w.\-]+', listed.group(1))
  names = ('true_computation', 'false_computation', 'to_apply')
  return [name for n in names if (name := instruction.called(n))]


def _trips(module: Module, condition: str) -> int | None:
  """Trips of a loop that counts from 0 up to a constant; else None."""
  computation = module.computations[condition]
  root = computation.instructions[computation.root]
  if root.opcode != 'compare' or 'direction=LT' not in root.rest:
    return None
  limit = computation.instructions[root.operands[1]]
  return int(limit.operands[0]) if limit.opcode == 'constant' else None


def _flops(
    module: Module, computation: Computation, instruction: Instruction
) -> float:
  """Of the matrix products in an instruction, two a multiplication."""
  if instruction.opcode in ('convolution', 'dot'):
    return _product(computation, instruction)
  if instruction.opcode != 'fusion':
    return 0.0
  inner = module.computations[instruction.called('calls')]
  return sum(_flops(module, inner, each) for each in inner)


def _product(computation: Computation, instruction: Instruction) -> float:
  left, right = (
      computation.instructions[name].arrays[0] for name in instruction.operands
  )
  out = instruction.arrays[0]
  if instruction.opcode == 'dot':
    summed = re.findall(
        r'\d+', _braces(instruction.rest, 'lhs_contracting_dims')
    )
    depth = math.prod(left.dims[int(axis)] for axis in summed)
    return 2.0 * math.prod(out.dims) * depth
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.rest)
  of_left, of_right, of_out = labels.groups()
  window = dict(
      re.findall(r'(\w+)=([\dx_\-]+)', _braces(instruction.rest, 'window'))
  )
  valid = 1
  for i, label in enumerate(sorted(filter(str.isdigit, of_out))):
    valid *= _valid_pairs(
        left.dims[of_left.index(label)],
        right.dims[of_right.index(label)],
        out.dims[of_out.index(label)],
        {name: value.split('x')[i] for name, value in window.items()},
    )
  features = right.dims[of_right.index('i')] * right.dims[of_right.index('o')]
  return 2.0 * valid * features * out.dims[of_out.index('b')]


def _valid_pairs(
    base: int, kernel: int, out: int, window: Mapping[str, str]
) -> int:
  """(output, kernel) places of one axis that meet an element of the base."""
  stride = int(window.get('stride', 1))
  low = int(window.get('pad', '0_0').split('_')[0])
  base_dilation = int(window.get('lhs_dilate', 1))
  kernel_dilation = int(window.get('rhs_dilate', 1))
  place = (
      np.arange(out)[:, None] * stride
      + np.arange(kernel)[None] * kernel_dilation
      - low
  )
  meets = (place >= 0) & (place <= (base - 1) * base_dilation)
  return int(np.sum(meets & (place % base_dilation == 0)))


def _braces(text: str, name: str) -> str:
  found = re.search(rf'\b{name}=\{{([^}}]*)\}}', text)
  return found.group(1) if found else ''


def _hbm_bytes(
    module: Module, computation: Computation, instruction: Instruction
) -> int:
  """Bytes that an instruction reads from HBM and writes to it."""
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith('-done'):
    return 0
  values = computation.instructions
  operands = [values[name] for name in instruction.operands if name in values]
  written = sum(array.bytes for array in instruction.arrays if array.in_hbm)
  if opcode in ('copy-start', 'slice-start'):
    ends = instruction.arrays[0], operands[0].arrays[0]
    return min(end.bytes for end in ends) * sum(end.in_hbm for end in ends)
  if opcode == 'fusion':
    inner = module.computations[instruction.called('calls')]
    read = sum(
        _read(module, inner, number, operand.bytes)
        for number, operand in enumerate(operands)
        if operand.in_hbm
    )
    return read + _written(module, inner, inner.root, instruction.arrays)
  if opcode in _SLICING:
    return written + (instruction.bytes if operands[0].in_hbm else 0)
  if opcode == 'dynamic-update-slice':  # in place
    update = operands[1]
    return update.bytes * (update.in_hbm + instruction.in_hbm)
  return written + sum(operand.bytes for operand in operands if operand.in_hbm)


def _read(module: Module, inner: Computation, number: int, size: int) -> int:
  """Bytes that a fused computation reads of a parameter: all, or slices."""
  for each in inner:
    if each.opcode == 'parameter' and each.operands == (str(number),):
      return min(size, _used(module, inner, each.name, size))
  return 0


def _used(module: Module, inner: Computation, name: str, size: int) -> int:
  used = 0
  for user in inner:
    if name not in user.operands:
      continue
    first = user.operands[0] == name
    if user.opcode in _SLICING and first:
      used += user.bytes
    elif user.opcode == 'dynamic-update-slice' and first:
      continue  # written in place
    elif user.opcode == 'bitcast':
      used += _used(module, inner, user.name, size)
    elif user.opcode == 'fusion':
      nested = module.computations[user.called('calls')]
      used += _read(module, nested, user.operands.index(name), size)
    elif user.opcode != 'tuple':
      return size
  return used


def _written(
    module: Module, inner: Computation, name: str, arrays: Sequence[Array]
) -> int:
  """Bytes that a fused computation writes to HBM: arrays, or slices of them."""
  value = inner.instructions[name]
  if value.opcode == 'tuple':
    return sum(
        _written(module, inner, part, (array,))
        for part, array in zip(value.operands, arrays)
    )
  if not arrays[0].in_hbm or value.opcode == 'parameter':
    return 0
  if value.opcode == 'bitcast':
    return _written(module, inner, value.operands[0], arrays)
  if value.opcode == 'dynamic-update-slice':
    return inner.instructions[value.operands[1]].bytes
  if value.opcode == 'fusion':
    nested = module.computations[value.called('calls')]
    return _written(module, nested, nested.root, arrays)
  return sum(array.bytes for array in arrays)


def _collectives(
    module: Module, computation: Computation, instruction: Instruction
) -> list[Collective]:
  """The exchanges that an instruction starts."""
  opcode = instruction.opcode
  if opcode == 'fusion':
    name = instruction.called('calls')
    # One that was started before goes on beside what these compute.
    goes_on = 'async-collective-done', 'async_collective_fusion'
    if instruction.name.startswith(goes_on) or name.startswith(goes_on):
      return []
    inner = module.computations[name]
    found = [c for each in inner for c in _collectives(module, inner, each)]
    if name.startswith('all-reduce-scatter'):
      found = [c._replace(kind='reduce-scatter') for c in found]
    if instruction.name.startswith('async-collective-start'):
      found = [c._replace(hidden=True) for c in found]
    return found
  kind = opcode.removesuffix('-start')
  if kind not in COLLECTIVES:
    return []
  values = computation.instructions
  operands = [values[name] for name in instruction.operands]
  arrays = [array for operand in operands for array in operand.arrays]
  if kind == 'all-gather':  # what comes out is the larger side
    arrays = list(instruction.arrays)
    if opcode != kind:  # (operands, results)
      arrays = arrays[len(operands) : 2 * len(operands)]
  return [
      Collective(
          kind,
          ' '.join(map(str, arrays)),
          sum(array.bytes for array in arrays),
          group(instruction.rest),
          opcode != kind,
          instruction.op_name,
      )
  ]


def group(attributes: str) -> tuple[int, ...]:
  """Devices of the first group that exchanges data; () where all do.

  Args:
    attributes: of a collective, with source_target_pairs, or replica_groups in
      one of XLA's forms: {{0,1},{2,3}}, [2,2]<=[2,2]T(1,0), mesh['a'=2,'b'=2]
      {'a'}.
  """
  pairs = re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', attributes)
  if pairs:
    return tuple(map(int, pairs.groups()))
  text = attributes.partition('replica_groups=')[2]
  if text.startswith('{{'):
    return _numbers(text[: text.index('}')])
  if text.startswith('['):
    sizes, devices = re.match(
        r'(\[[\d,]+\])<=(\S+?\](?:T\([\d,]+\))?)', text
    ).groups()
    return tuple(_iota(devices).reshape(_numbers(sizes))[0].tolist())
  if text.startswith('mesh'):
    return _of_mesh(text)
  return ()


def _of_mesh(text: str) -> tuple[int, ...]:
  """Devices along some axes: mesh['a'=2,'b'=4], device_ids=(..) {'b':(1)2}."""
  axes = re.findall(r"'(\w+)'=(\d+)", text[: text.index(']')])
  order, along = re.match(
      r"\](?:, device_ids=\((.*?\])?(?:T\(.*?\))?\))? ?\{('.*?)\}",
      text[text.index(']') :],
  ).groups()
  order = re.search(r'device_ids=\((\S+)\) \{', text) if order else None
  # A part of an axis, 'b':(1)2, is the middle one of b = 1 * 2 * rest.
  parts = {
      name: (int(before or 1), int(size or 0))
      for name, before, size in re.findall(
          r"'(\w+)'(?::\((\d+)\)(\d+))?", along
      )
  }
  shape, place = [], []
  for name, whole in axes:
    before, size = parts.get(name, (int(whole), 1))
    size = size or int(whole)
    shape += [before, size, int(whole) // before // size]
    place += [0, slice(None), 0]
  devices = _iota(order.group(1)) if order else np.arange(math.prod(shape))
  return tuple(devices.reshape(shape)[tuple(place)].ravel().tolist())


def _iota(text: str) -> Any:
  """The numbers of '[2,4]T(1,0)': 0..7 in that shape, transposed."""
  shape, _, order = text.partition(']')
  made = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
  return made.transpose(_numbers(order)) if order else made


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in re.findall(r'\d+', text))
