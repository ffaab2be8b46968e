"""A pair and a slice of four chips, whose plan takes seconds to compile."""

from distillspec_jax.distributed import mesh
from distillspec_jax.planning import compiled_program
from distillspec_jax.planning import config as config_lib
from distillspec_jax.planning import hlo
from distillspec_jax.planning import slice_plan
from distillspec_jax.planning import topologies
from distillspec_jax.sampling import decoding
from distillspec_jax.training import method
from distillspec_jax.training import settings
from tests import tiny

MODEL = tiny.config(
    256,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dtype='bfloat16',
    scan_layers=True,
)
ON_POLICY = method.Method(divergence='jsd', fixed_fraction=0.0)
DECODING = decoding.Decoding(
    sampling=decoding.Sampling(temperature=1.0),
    drafting=decoding.Drafting(length=4),
    max_new_tokens=8,
)


def training(
    batch_size=8, micro_batches=1, sizes=(4, 1, 1), target=MODEL, **changes
):
  """On-policy distillation on a mesh of these sizes."""
  data, fsdp, tensor = sizes
  return settings.Training(
      **{
          'start': settings.Start(model=MODEL),
          'target': target and settings.Target(checkpoint=target),
          'method': ON_POLICY,
          'steps': settings.Steps(
              num_steps=100,
              batch_size=batch_size,
              micro_batches=micro_batches,
          ),
          'mesh': mesh.MeshSizes(data=data, fsdp=fsdp, tensor=tensor),
          **changes,
      }
  )


def config(changes=None, **of_training):
  """The plan of `training(**of_training)`.

  Args:
    changes: to the fields of `PlanConfig`.
    **of_training: arguments of `training`.
  """
  run = training(**of_training)
  values = {
      'topology': topologies.parse('v5e:2x2'),
      'target': MODEL if run.target else None,
      'draft': MODEL,
      'training': run,
      'decoding': DECODING,
      'decode_batch_size': 8,
      'input_length': 16,
      'output_length': 8,
  }
  return config_lib.PlanConfig(**values | (changes or {}))


# Plans of programs that were not compiled.

PLACES = ((0, 0), (1, 0), (0, 1), (1, 1))


def gather(shape, size):
  return hlo.Collective('all-gather', shape, size, (0, 1), False)


def plan(*collectives):
  """One whose rollout exchanges something for each of 8 tokens."""
  loop = hlo.Block('jit(generate)', None, 1000, collectives=list(collectives))
  step = hlo.Block('', 1, 1000, hbm_bytes=10, inner=[loop])
  step.work = [hlo.Work(900, 'f32[8]', 'jit(step)/add')]
  step.inner[0].work = [hlo.Work(800, 'f32[4]', 'jit(generate)/mul')]
  return _plan(compiled_program.CompiledProgram(1.0, block=step, places=PLACES))


def too_large():
  """One that does not fit."""
  return _plan(
      compiled_program.CompiledProgram(
          1.0, exceeds='RESOURCE_EXHAUSTED', needed_bytes=20 * 2**30
      )
  )


def _plan(step):
  compilation = compiled_program.Compilation({'target': 2**30}, {'step': step})
  return slice_plan.SlicePlan(config(), compilation, (0.5,))
