"""`distillspec experiment`: all stages that an experiment file binds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from distillspec_jax.commands import benchmark
from distillspec_jax.commands import devices
from distillspec_jax.commands import evaluate
from distillspec_jax.commands import gin_configuration
from distillspec_jax.commands import terminal

HELP = (
    'all stages of an experiment file, for several seeds; finished stages are'
    ' not repeated'
)
EXAMPLE = (
    'distillspec experiment --gin_file=experiments/gsm8k.gin --run=runs/gsm8k'
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  gin_configuration.add_flags(parser)
  devices.add_host_flags(parser)


def run(options: argparse.Namespace, files: Sequence[str] = ()) -> None:
  from distillspec_jax.studies import experiment

  run_experiment = gin_configuration.configured(
      experiment.run_experiment, options, files
  )
  with devices.using(options):
    terminal.print_path(run_experiment(show=show))


def show(title: str, measured: list[Any]) -> None:
  """Tables of what either stage measured."""
  from distillspec_jax.evaluation import acceptance

  is_acceptance = isinstance(measured[0], acceptance.Measured)
  command = evaluate if is_acceptance else benchmark
  terminal.print_tables(command.tables(title, measured))
