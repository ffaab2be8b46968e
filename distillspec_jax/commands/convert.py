"""`distillspec convert`: a checkpoint in another format."""

from __future__ import annotations

import argparse

from distillspec_jax.commands import devices
from distillspec_jax.commands import flags

HELP = 'between Hugging Face, t5x and own checkpoints; compares both sides'
EXAMPLE = 'distillspec convert runs/draft flan-distilled --to=hugging_face'


def add_flags(parser: argparse.ArgumentParser) -> None:
  from distillspec_jax.checkpoints import conversion

  flags.add(parser, conversion.convert)


def run(options: argparse.Namespace) -> None:
  from distillspec_jax.checkpoints import conversion

  with devices.using(options):
    done = flags.call(conversion.convert, options)
  print(conversion.report(done))
  print(done.folder)
