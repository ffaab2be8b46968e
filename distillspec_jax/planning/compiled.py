"""What the compiler says of one program, as plain data that can be kept."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from typing import Any, NamedTuple

from distillspec_jax.planning import hlo

_LISTED = 12
_NOT_MADE = frozenset(
    ('parameter', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'constant')
)


class Buffer(NamedTuple):
  """An array of a program: its type, bytes, and where it comes from."""

  shape: str
  bytes: int
  op_name: str


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program that was compiled for a slice, or could not be.

  Attributes:
    compile_s: seconds that compiling took.
    exceeds: '' where it fits into a chip's memory, else what the compiler says.
    needed_bytes: a chip, at the program's peak; where it does not fit, as far
      as the compiler got.
    argument_bytes: a chip, parameters and the like.
    temporary_bytes: a chip, of all that comes and goes.
    code_bytes: the program itself.
    block: the work, as a tree of loops; None where it does not fit.
    places: coordinates of the chips, in the order of the mesh.
    largest: temporaries in HBM, the largest first.
  """

  compile_s: float
  exceeds: str = ''
  needed_bytes: int = 0
  argument_bytes: int = 0
  temporary_bytes: int = 0
  code_bytes: int = 0
  block: hlo.Block | None = None
  places: tuple[tuple[int, ...], ...] = ()
  largest: tuple[Buffer, ...] = ()

  def to_dict(self) -> dict[str, Any]:
    """Plain data; `from_dict` is its inverse."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> Compiled:
    made = dict(values)
    made['block'] = made['block'] and _block(made['block'])
    made['places'] = tuple(map(tuple, made['places']))
    made['largest'] = tuple(Buffer(*buffer) for buffer in made['largest'])
    return cls(**made)


def _block(values: dict[str, Any]) -> hlo.Block:
  collectives = [
      hlo.Collective(kind, shape, size, tuple(group), hidden, op_name)
      for kind, shape, size, group, hidden, op_name in values['collectives']
  ]
  made = {
      'work': [hlo.Work(*each) for each in values['work']],
      'collectives': collectives,
      'inner': [_block(each) for each in values['inner']],
  }
  return hlo.Block(**{**values, **made})


def read(
    executable: Any, places: tuple[tuple[int, ...], ...], compile_s: float
) -> Compiled:
  """From what `jax.jit(..).lower(..).compile()` gives, for a TPU."""
  memory = executable.memory_analysis()
  module = hlo.parse(executable.as_text())
  return Compiled(
      compile_s=compile_s,
      needed_bytes=memory.peak_memory_in_bytes,
      argument_bytes=memory.argument_size_in_bytes,
      temporary_bytes=memory.temp_size_in_bytes,
      code_bytes=memory.generated_code_size_in_bytes,
      block=hlo.block(module),
      places=places,
      largest=largest(module),
  )


def largest(module: hlo.Module) -> tuple[Buffer, ...]:
  """The largest arrays that a program makes in HBM."""
  found = {
      Buffer(str(array), array.bytes, instruction.op_name)
      for name in _scheduled(module, module.entry)
      for instruction in module.computations[name]
      if instruction.opcode not in _NOT_MADE
      for array in instruction.arrays
      if array.in_hbm
  }
  ordered = sorted(found, key=lambda buffer: (-buffer.bytes, buffer))
  return tuple(ordered[:_LISTED])


def _scheduled(module: hlo.Module, name: str) -> Iterator[str]:
  """Computations that run by themselves: the entry, and bodies of loops."""
  yield name
  for instruction in module.computations[name]:
    if instruction.opcode == 'while':
      yield from _scheduled(module, instruction.called('body'))
