"""The process that holds the TPU compiler: requests in, answers out.

The compiler is a library that takes hold of the machine's TPUs, if any, and
that writes to the error output of the process; so it gets one of its own, which
runs JAX on the CPU and has the compiler for slices only. `compiling` starts it:

  python -m distillspec_jax.planning.worker < pickled request > pickled answer
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
from distillspec_jax.planning import compiled as compiled_lib
from distillspec_jax.planning import compiling
from distillspec_jax.planning import programs
from distillspec_jax.planning import setting as setting_lib

_THREADS = 2  # a compilation keeps little more than one core busy


def answer(
    setting: setting_lib.Setting, names: tuple[str, ...]
) -> compiling.Answer:
  """Counts bytes and compiles; arguments as of `compiling.ask`.

  Raises:
    UserError: the mesh cannot be laid over the slice.
  """
  from jax.experimental import topologies

  described = topologies.get_topology_desc(
      topology_name=setting.topology.layout,
      platform='tpu',
      **setting.topology.options(),
  )
  mesh = mesh_lib.make_mesh(
      setting.data, setting.fsdp, setting.tensor, described.devices
  )
  run = programs.Run(setting, mesh)
  counted = run.held_bytes()
  counted['replicated'] = run.replicated_bytes()
  counted |= {f'{k} caches': v for k, v in run.cache_bytes().items()}
  if setting.trains:
    counted['activations'] = run.activation_bytes()
  places = tuple(tuple(device.coords) for device in mesh.devices.flat)
  # Tracing is not for threads, compiling is.
  lowered = [run.lower(name) for name in names]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    made = pool.map(lambda each: _compile(each, places), lowered)
  return compiling.Answer(counted, dict(zip(names, made)))


def _compile(lowered: Any, places: Any) -> compiled_lib.Compiled:
  start = time.perf_counter()
  try:
    executable = lowered.compile()
  except Exception as error:
    text = str(error)
    if 'RESOURCE_EXHAUSTED' not in text:
      raise
    return compiled_lib.Compiled(
        compile_s=time.perf_counter() - start,
        exceeds=' '.join(text.split())[:400],
        needed_bytes=_needed(text),
    )
  seconds = time.perf_counter() - start
  return compiled_lib.read(executable, places, seconds)


def _needed(text: str) -> int:
  """Bytes in 'requires 24.69G' or 'Used 24.69G of 15.75G hbm'."""
  found = re.search(r'([\d.]+)([KMG])', text)
  unit = {'K': 2**10, 'M': 2**20, 'G': 2**30}
  return int(float(found.group(1)) * unit[found.group(2)]) if found else 0


def main() -> None:
  setting, names = pickle.load(sys.stdin.buffer)
  # What libraries print must not get between the bytes of the answer.
  out = os.fdopen(os.dup(sys.stdout.fileno()), 'wb')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  try:
    made: compiling.Answer | errors.UserError = answer(setting, names)
  except errors.UserError as error:
    made = error
  pickle.dump(made, out)
  out.close()


if __name__ == '__main__':
  main()
