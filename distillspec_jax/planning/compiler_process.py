"""The process with the TPU compiler: a request in, an answer out.

The compiler is a library that takes the machine's TPUs, if any, and writes to
the error output of the process; so it gets a process of its own, which runs JAX
on the CPU and compiles for slices only. `compiler` starts it:

  python -m distillspec_jax.planning.compiler_process < request > answer
"""

from __future__ import annotations

from concurrent import futures
import os
import pickle
import re
import sys
import time
from typing import Any

from distillspec_jax.core import errors
from distillspec_jax.distributed import mesh as mesh_lib
from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import config as config_lib
from distillspec_jax.planning import hlo
from distillspec_jax.planning import lowering

_THREADS = 2  # a compilation keeps little more than one core busy
_LISTED = 12  # buffers


def answer(
    config: config_lib.PlanConfig, programs: tuple[str, ...]
) -> compiled_program.Compilation:
  """Counts bytes and compiles; arguments as in `compiler.ask`.

  Raises:
    UserError: the mesh cannot be laid over the slice.
  """
  from jax.experimental import topologies

  slice_ = topologies.get_topology_desc(
      topology_name=config.topology.layout,
      platform='tpu',
      **config.topology.options(),
  )
  sizes = config.training.mesh
  mesh = mesh_lib.make_mesh(
      sizes.data, sizes.fsdp, sizes.tensor, slice_.devices
  )
  run = lowering.Run(config, mesh)
  size = run.held_bytes()
  size['replicated'] = run.replicated_bytes()
  size |= {f'{name}_caches': n for name, n in run.cache_bytes().items()}
  size |= {f'{name}_read': n for name, n in run.read_bytes().items()}
  if config.train:
    size['activations'] = run.activation_bytes()
  places = tuple(tuple(device.coords) for device in mesh.devices.flat)
  # Tracing is not for threads, compiling is.
  lowered = [run.lower(name) for name in programs]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    compiled = pool.map(lambda program: _compile(program, places), lowered)
  return compiled_program.Compilation(size, dict(zip(programs, compiled)))


def _compile(lowered: Any, places: Any) -> compiled_program.CompiledProgram:
  start = time.perf_counter()
  try:
    executable = lowered.compile()
  except Exception as error:
    text = str(error)
    if 'RESOURCE_EXHAUSTED' not in text:
      raise
    return compiled_program.CompiledProgram(
        compile_s=time.perf_counter() - start,
        exceeds=' '.join(text.split())[:400],
        needed_bytes=_needed(text),
    )
  seconds = time.perf_counter() - start
  memory = executable.memory_analysis()
  (module,) = executable.runtime_executable().hlo_modules()
  program = hlo.parse(module.as_serialized_hlo_module_proto())
  return compiled_program.CompiledProgram(
      compile_s=seconds,
      needed_bytes=memory.peak_memory_in_bytes,
      temporary_bytes=memory.temp_size_in_bytes,
      block=hlo.block(program),
      places=places,
      largest=hlo.largest(program, _LISTED),
  )


def _needed(text: str) -> int:
  """Bytes in 'requires 24.69G' or 'Used 24.69G of 15.75G hbm'."""
  match = re.search(r'([\d.]+)([KMG])', text)
  unit = {'K': 2**10, 'M': 2**20, 'G': 2**30}
  return int(float(match.group(1)) * unit[match.group(2)]) if match else 0


def main() -> None:
  config, programs = pickle.load(sys.stdin.buffer)
  # What libraries print must not get between the bytes of the answer.
  out = os.fdopen(os.dup(sys.stdout.fileno()), 'wb')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  try:
    result: compiled_program.Compilation | errors.UserError = answer(
        config, programs
    )
  except errors.UserError as error:
    result = error
  pickle.dump(result, out)
  out.close()


if __name__ == '__main__':
  main()
