"""How far `distillspec plan` is from speed-ups that were published.

Compiles the samplers of published pairs for the TPU of the publication, one
chip at batch 1, and writes what the compiler says of their loops over tokens to
benchmarks/results/plan_anchors.json; `compared` sets it beside what was
measured. Loops over tokens do not run the encoder: it has one layer here, which
compiles sooner.

    python benchmarks/plan_anchors.py

Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, tables 2 and 4: T5 1.1
XXL on a TPU v4. "Supercharging LLM inference on Google TPUs", 2026,
developers.googleblog.com: on TPU v5p verification is flat in the number of
tokens; here the decoder of XL reads 16.
"""

from __future__ import annotations

from collections.abc import Iterator
import json
import os
import pathlib
import platform
import time
from typing import Any, NamedTuple

import jax

from distillspec_jax.core import cost_model
from distillspec_jax.core import results
from distillspec_jax.distributed import mesh
from distillspec_jax.models import config as model_config
from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import compiler
from distillspec_jax.planning import config as config_lib
from distillspec_jax.planning import estimate
from distillspec_jax.planning import hlo
from distillspec_jax.planning import topologies
from distillspec_jax.sampling import decoding
from distillspec_jax.training import settings

RESULTS = pathlib.Path(__file__).parent / 'results' / 'plan_anchors.json'
TOLERANCE = 0.25  # of what was measured
# Program, chip, target, draft, block length.
PROGRAMS = (
    ('autoregressive', 'v4:1x1x1', 'xxl', 'small', 7),
    ('speculative', 'v4:1x1x1', 'xxl', 'small', 7),
    ('autoregressive', 'v4:1x1x1', 'base', 'small', 7),
    ('autoregressive', 'v4:1x1x1', 'large', 'small', 7),
    ('autoregressive', 'v5p:1x1x1', 'xl', 'small', 15),
    ('speculative', 'v5p:1x1x1', 'xl', 'small', 15),
)
# Task and temperature, draft, gamma, alpha, measured speed-up.
SPEEDUPS = (
    ('En-De, greedy', 'small', 7, 0.75, 3.4),
    ('En-De, greedy', 'base', 7, 0.80, 2.8),
    ('En-De, greedy', 'large', 7, 0.82, 1.7),
    ('En-De, sampled', 'small', 7, 0.62, 2.6),
    ('En-De, sampled', 'base', 5, 0.68, 2.4),
    ('En-De, sampled', 'large', 3, 0.71, 1.4),
    ('CNN/DM, greedy', 'small', 5, 0.65, 3.1),
    ('CNN/DM, greedy', 'base', 5, 0.73, 3.0),
    ('CNN/DM, greedy', 'large', 3, 0.74, 2.2),
    ('CNN/DM, sampled', 'small', 5, 0.53, 2.3),
    ('CNN/DM, sampled', 'base', 3, 0.55, 2.2),
    ('CNN/DM, sampled', 'large', 3, 0.56, 1.7),
)
FLAT = 'v5p, 16 tokens at once over one'


class Compared(NamedTuple):
  """A measured number, and the plan's.

  Attributes:
    what: was measured.
    draft: its size, or '–'.
    measured: as published.
    limit: block efficiency at the published acceptance, which no plan exceeds;
      None for a ratio of times.
    planned: by what the compiler says.
  """

  what: str
  draft: str
  measured: float
  limit: float | None
  planned: float

  @property
  def difference(self) -> float:
    return self.planned / self.measured - 1.0

  @property
  def is_missed(self) -> bool:
    return abs(self.difference) > TOLERANCE


def compared(content: dict[str, Any]) -> Iterator[Compared]:
  """The published numbers beside those of the plan, of what was compiled.

  Args:
    content: of the results file.
  """
  sampling = {}
  programs = {
      (x['program'], x['chip'], x['target'], x['draft']): x['loop']
      for x in content['lines']
  }
  cost = lambda chip, loop, trips: estimate.cost(
      loop, topologies.parse(chip), ((0, 0, 0),), (trips,)
  )
  for (program, chip, target, draft), loop in programs.items():
    if program == 'speculative':
      token = _block(programs['autoregressive', chip, target, draft])
      block = _block(loop)
      (step,) = (
          x for x in block.inner if x.op_name.endswith('draft_loop/while')
      )
      length = step.trips + 1
      sampling[chip] = length, estimate.Sampling(
          cost(chip, token, 0), cost(chip, block, 0), cost(chip, step, 0), 0.0
      )
  length, xxl = sampling['v4:1x1x1']
  verify = max(1.0, xxl.verify_ratio(length))
  steps = {'small': xxl.draft.seconds}
  for size in ('base', 'large'):
    of_draft = programs.get(('autoregressive', 'v4:1x1x1', size, 'small'))
    if of_draft is not None:
      steps[size] = cost('v4:1x1x1', _block(of_draft), 0).seconds
  for task, draft, gamma, alpha, measured in SPEEDUPS:
    if draft not in steps:
      continue
    tokens = cost_model.predicted_block_efficiency(alpha, gamma)
    ratio = steps[draft] / xxl.token.seconds
    planned = cost_model.speedup(tokens, ratio, gamma, verify)
    yield Compared(
        f'{task}, blocks of {gamma}', draft, measured, tokens, planned
    )
  if 'v5p:1x1x1' in sampling:
    length, xl = sampling['v5p:1x1x1']
    yield Compared(FLAT, '–', 1.0, None, max(1.0, xl.verify_ratio(length)))


def absent(content: dict[str, Any]) -> list[str]:
  """The programs that the results file lacks."""
  names = 'program', 'chip', 'target', 'draft'
  known = [tuple(line[name] for name in names) for line in content['lines']]
  return [
      f'{target} on {chip.partition(":")[0]}, {program}'
      for program, chip, target, draft, _ in PROGRAMS
      if (program, chip, target, draft) not in known
  ]


def plain(block: hlo.Block) -> dict[str, Any]:
  """What a cost follows from, for JSON."""
  names = 'op_name', 'trips', 'cycles', 'flops', 'hbm_bytes'
  values = {name: getattr(block, name) for name in names}
  return values | {'inner': [plain(each) for each in block.inner]}


def _block(values: dict[str, Any]) -> hlo.Block:
  return hlo.Block(**values | {'inner': list(map(_block, values['inner']))})


def loop(program: compiled_program.CompiledProgram) -> hlo.Block:
  """The loop over tokens or blocks."""
  (found,) = estimate.data_dependent(program.block)
  return found


def planned(
    chip: str, target: str, draft: str, length: int
) -> config_lib.PlanConfig:
  """The samplers of a pair on one chip, at batch 1, inputs of 512 tokens."""
  of = lambda size: model_config.published(
      f't5_1_1_{size}', num_encoder_layers=1, dtype='bfloat16'
  )
  return config_lib.PlanConfig(
      topology=topologies.parse(chip),
      target=of(target),
      draft=of(draft),
      training=settings.Training(
          start=settings.Start(model=of(draft)),
          target=settings.Target(checkpoint=of(target)),
          steps=settings.Steps(num_steps=1, batch_size=1),
          mesh=mesh.MeshSizes(data=1),
      ),
      decoding=decoding.Decoding(
          sampling=decoding.Sampling(temperature=1.0),
          drafting=decoding.Drafting(length=length),
          max_new_tokens=128,
      ),
      decode_batch_size=1,
      input_length=512,
      output_length=128,
      train=False,
  )


def main() -> None:
  start, lines = time.time(), []
  for program, chip, *pair in PROGRAMS:
    compilation = compiler.ask(planned(chip, *pair), (program,))
    target, draft, _ = pair
    lines.append({
        'program': program, 'chip': chip, 'target': target, 'draft': draft,
        'loop': plain(loop(compilation.programs[program])),
        'provenance': {
            **results.provenance(seed=0),
            'libtpu': sorted(
                path.name
                for path in compiler.library().parents[1].glob('*.dist-info')
            ),
        },
    })  # fmt: skip
    print(program, chip, target, draft, flush=True)
    write(lines, 'python benchmarks/plan_anchors.py', time.time() - start)


def write(
    lines: list[dict[str, Any]], command: str, seconds: float | None
) -> None:
  """The results file; seconds are None where nobody timed it."""
  head = {
      'command': command,
      'seconds': None if seconds is None else round(seconds),
      'machine': f'{os.cpu_count()} CPU cores, Python'
      f' {platform.python_version()}, jax {jax.__version__}',
  }
  rows = ',\n'.join(map(json.dumps, lines))
  text = json.dumps(head, indent=0).removesuffix('\n}')
  RESULTS.write_text(f'{text},\n"lines": [\n{rows}\n]}}\n')


if __name__ == '__main__':
  main()
