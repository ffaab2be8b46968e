"""DistillSpec in JAX: drafts that make speculative decoding faster.

import distillspec_jax as ds

target = ds.load('runs/quickstart/seed_0/target')
draft = ds.load('runs/quickstart/seed_0/distilled')
out = ds.generate(target, ['def main('], draft=draft, block_length=5)
out.text, out.statistics.block_efficiency
"""

from distillspec_jax.checkpoints.loading import load
from distillspec_jax.checkpoints.loading import Model
from distillspec_jax.core.errors import UserError
from distillspec_jax.evaluation.speed.block_length import Plan
from distillspec_jax.evaluation.speed.block_length import plan_block_length
from distillspec_jax.losses import divergences
from distillspec_jax.sampling.generation import generate
from distillspec_jax.sampling.generation import Generation

__version__ = '0.1.0'

__all__ = [
    'Generation',
    'Model',
    'Plan',
    'UserError',
    'divergences',
    'generate',
    'load',
    'plan_block_length',
]
