"""`distillspec study`: many runs, one answer."""

from __future__ import annotations

import argparse

from distillspec_jax.commands import devices
from distillspec_jax.commands import experiment
from distillspec_jax.commands import gin_configuration
from distillspec_jax.commands import terminal

HELP = (
    'a grid of methods, a garden of targets, transfer or lossy decoding, as the'
    ' gin file says; each run is done once'
)
EXAMPLE = 'distillspec study --gin_file=experiments/grid.gin --run=runs/grid'


def add_flags(parser: argparse.ArgumentParser) -> None:
  gin_configuration.add_flags(parser)
  devices.add_host_flags(parser)
  parser.add_argument(
      '--dry_run',
      action='store_true',
      help='prints the stages, which of them are done, and the rows; does'
      ' nothing',
  )


def run(options: argparse.Namespace) -> None:
  from distillspec_jax.studies import study

  run_study = gin_configuration.configured(study.run_study, options)
  with devices.using(options):
    if options.dry_run:
      print(run_study(is_dry_run=True))
    else:
      terminal.print_path(run_study(show=experiment.show))
