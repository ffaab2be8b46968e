"""`distillspec train`: one training run."""

from __future__ import annotations

import argparse

from distillspec_jax.commands import devices
from distillspec_jax.commands import gin_configuration
from distillspec_jax.commands import terminal

HELP = (
    'fine-tuning or distillation, as the gin files say; resumes from the last'
    ' checkpoint'
)
EXAMPLE = (
    'distillspec train --gin_file=models/micro.gin --gin_file=tasks/python.gin'
    ' --gin_file=methods/fine_tune.gin --gin_file=runs/train.gin'
    ' --gin.NUM_STEPS=500 --run=runs/target'
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  gin_configuration.add_flags(parser)
  devices.add_host_flags(parser)


def run(options: argparse.Namespace) -> None:
  from distillspec_jax.training import loop

  train = gin_configuration.configured(loop.train, options)
  with devices.using(options):
    terminal.print_path(train())
