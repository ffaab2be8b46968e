"""`distillspec quickstart`: an experiment whose file comes with the package."""

from __future__ import annotations

import argparse

from distillspec_jax.commands import experiment

HELP = (
    'the whole pipeline on embedded data, in minutes, on a laptop: fine-tune a'
    ' target and a draft, distil, measure, report'
)
EXAMPLE = 'distillspec quickstart --run=runs/quickstart'

add_flags = experiment.add_flags


def run(options: argparse.Namespace) -> None:
  experiment.run(options, files=['experiments/quickstart.gin'])
