"""`distillspec plan`: what a run needs on TPU slices."""

from __future__ import annotations

import argparse

from distillspec_jax.commands import devices
from distillspec_jax.commands import gin_configuration

HELP = (
    'what a run needs on TPU slices, without having one: memory, time and'
    ' communication, by the TPU compiler'
)
EXAMPLE = (
    'distillspec plan --topology=v5e-256 --gin.TARGET=t5_1_1_xl'
    ' --gin.DRAFT=t5_1_1_small'
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  gin_configuration.add_flags(parser)
  parser.add_argument(
      '--topology',
      action='append',
      metavar='NAME,...',
      help='slices such as v5e-256 or v5e:16x16; several with commas between,'
      ' or the flag several times',
  )


def run(options: argparse.Namespace) -> None:
  from distillspec_jax.planning import plan as planning

  topology = ','.join(options.topology) if options.topology else None
  plan = gin_configuration.configured(
      planning.plan, options, ['runs/plan.gin'], topology=topology
  )
  with devices.using(options):
    plan()
