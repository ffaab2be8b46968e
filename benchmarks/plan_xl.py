"""What `distillspec plan` predicts for T5 XL and a small draft on a v5e chip.

Eight rows, inputs of 512 tokens, outputs of 128, blocks of 7, bfloat16, layers
unrolled. Loops over tokens do not run the encoder, which has one layer in the
samplers here. The training step is compiled with 2 and 6 layers of the target
on either side, which is linear in them, and extrapolated to all 24. Writes
benchmarks/results/plan_xl.json after each program; started again, it skips
what the cache of plans has.

    python benchmarks/plan_xl.py
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import time
from typing import Any

import jax

from distillspec_jax.core import results
from distillspec_jax.distributed import mesh
from distillspec_jax.models import config as model_config
from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import compiler
from distillspec_jax.planning import config as config_lib
from distillspec_jax.planning import slice_plan
from distillspec_jax.planning import topologies
from distillspec_jax.sampling import decoding
from distillspec_jax.training import method
from distillspec_jax.training import settings

RESULTS = pathlib.Path(__file__).parent / 'results' / 'plan_xl.json'
LAYERS = 24
CUT = (2, 6)
ACCEPTANCE = 0.75
_ROWS = 8


def planned(
    num_encoder_layers: int, num_decoder_layers: int
) -> config_lib.PlanConfig:
  """The pair on a chip, with so many layers of the target."""
  draft = model_config.published('t5_1_1_small', dtype='bfloat16')
  target = model_config.published(
      't5_1_1_xl',
      num_encoder_layers=num_encoder_layers,
      num_decoder_layers=num_decoder_layers,
      dtype='bfloat16',
  )
  return config_lib.PlanConfig(
      topology=topologies.parse('v5e:1x1'),
      target=target,
      draft=draft,
      training=settings.Training(
          start=settings.Start(model=draft),
          target=settings.Target(checkpoint=target),
          method=method.Method(divergence='jsd', fixed_fraction=0.0),
          steps=settings.Steps(num_steps=1000, batch_size=_ROWS),
          mesh=mesh.MeshSizes(data=1),
      ),
      decoding=decoding.Decoding(
          sampling=decoding.Sampling(temperature=1.0),
          drafting=decoding.Drafting(length=7),
          max_new_tokens=128,
      ),
      decode_batch_size=_ROWS,
      input_length=512,
      output_length=128,
  )


def numbers(
    config: config_lib.PlanConfig, programs: tuple[str, ...]
) -> dict[str, float]:
  """Of a plan, from programs that are compiled one after the other."""
  parts = [compiler.ask(config, (name,)) for name in programs]
  whole = compiled_program.Compilation(
      parts[0].bytes,
      {name: one for part in parts for name, one in part.programs.items()},
  )
  plan = slice_plan.SlicePlan(config, whole, (ACCEPTANCE,))
  return {name: one.value for name, one in plan.numbers().items()}


def step(content: dict[str, Any]) -> dict[str, float]:
  """Numbers of a training step with all layers; {} where none was compiled."""
  cut = {
      line['layers']: line['numbers']
      for line in content['lines']
      if line['program'] == 'step'
  }
  if set(cut) != set(CUT):
    return {}
  few, more = (cut[layers] for layers in CUT)
  share = (LAYERS - CUT[0]) / (CUT[1] - CUT[0])
  names = 'step_s', 'rollout_s', 'model_flops'
  found = {n: few[n] + share * (more[n] - few[n]) for n in names}
  peak = topologies.CHIPS['v5e'].flops
  learning_s = found['step_s'] - found['rollout_s']
  return found | {
      'mfu': found['model_flops'] / peak / learning_s,
      'mfu_with_rollouts': found['model_flops'] / peak / found['step_s'],
  }


def samplers(content: dict[str, Any]) -> dict[str, float]:
  """Numbers of the samplers; {} where they were not compiled."""
  for line in content['lines']:
    if line['program'] == 'samplers':
      return line['numbers']
  return {}


def main() -> None:
  start, lines = time.time(), []
  runs = [('samplers', (1, LAYERS), ('autoregressive', 'speculative'))]
  runs += [('step', (layers, layers), ('step',)) for layers in CUT]
  for name, layers, programs in runs:
    lines.append({
        'program': name, 'layers': layers[1],
        'numbers': numbers(planned(*layers), programs),
        'provenance': results.provenance(seed=0),
    })  # fmt: skip
    print(name, layers, flush=True)
    content = {
        'command': 'python benchmarks/plan_xl.py',
        'seconds': round(time.time() - start),
        'machine': f'{os.cpu_count()} CPU cores, Python'
        f' {platform.python_version()}, jax {jax.__version__}',
        'lines': lines,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + '\n')


if __name__ == '__main__':
  main()
