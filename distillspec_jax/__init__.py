"""DistillSpec in JAX: drafts that make speculative decoding faster.

import distillspec_jax as ds

target = ds.load('runs/quickstart/target')
draft = ds.load('runs/quickstart/seed_0/distilled')
out = ds.generate(target, ['def main('], draft=draft, block_length=5)
out.text, out.statistics.block_efficiency
"""

from distillspec_jax.checkpoints.loading import load
from distillspec_jax.checkpoints.loading import Loaded
from distillspec_jax.core.errors import UserError
from distillspec_jax.evaluation.speed.block_length import BlockLengthPlan
from distillspec_jax.evaluation.speed.block_length import DecodingPlan
from distillspec_jax.evaluation.speed.block_length import plan_block_length
from distillspec_jax.evaluation.speed.block_length import plan_decoding
from distillspec_jax.losses import divergences
from distillspec_jax.sampling.adaptive_length import Confidence
from distillspec_jax.sampling.adaptive_length import Entropy
from distillspec_jax.sampling.decoding import Decoding
from distillspec_jax.sampling.decoding import Drafting
from distillspec_jax.sampling.decoding import Sampling
from distillspec_jax.sampling.generation import generate
from distillspec_jax.sampling.generation import Generation
from distillspec_jax.sampling.verification import Block
from distillspec_jax.sampling.verification import Lenient
from distillspec_jax.sampling.verification import Token
from distillspec_jax.sampling.verification import Typical
from distillspec_jax.sampling.verification import Verifier

__version__ = '0.1.0'

__all__ = [
    'Block',
    'BlockLengthPlan',
    'Confidence',
    'Decoding',
    'DecodingPlan',
    'Drafting',
    'Entropy',
    'Generation',
    'Lenient',
    'Loaded',
    'Sampling',
    'Token',
    'Typical',
    'UserError',
    'Verifier',
    'divergences',
    'generate',
    'load',
    'plan_block_length',
    'plan_decoding',
]
