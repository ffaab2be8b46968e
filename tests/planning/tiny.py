"""A pair, and a slice of four chips, that a plan takes seconds for."""

from distillspec_jax.models import config as config_lib
from distillspec_jax.planning import setting as setting_lib
from distillspec_jax.planning import topologies
from distillspec_jax.training import method as method_lib
from distillspec_jax.training import optimizers


def setting(**changes):
  model = config_lib.published(
      'test', vocab_size=256, dtype='bfloat16', scan_layers=True
  )
  values = dict(
      topology=topologies.parse('v5e:2x2'),
      target=model,
      draft=model,
      method=method_lib.Method(divergence='jsd', fixed_fraction=0.0),
      optimizer=optimizers.Optimizer(),
      batch_size=8,
      micro_batches=1,
      decode_batch_size=8,
      input_length=16,
      output_length=8,
      block_length=4,
      temperature=1.0,
      target_dtype='bfloat16',
      data=4,
      fsdp=1,
      tensor=1,
  )
  return setting_lib.Setting(**values | changes)
