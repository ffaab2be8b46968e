"""`distillspec report`: results -> a page, figures and tables."""

from __future__ import annotations

import argparse

from distillspec_jax.commands import flags

HELP = 'result files -> a self-contained HTML page, figures, Markdown tables'
EXAMPLE = 'distillspec report --run=runs/quickstart'


def add_flags(parser: argparse.ArgumentParser) -> None:
  from distillspec_jax.reporting import report

  flags.add(parser, report.report)


def run(options: argparse.Namespace) -> None:
  from distillspec_jax.reporting import report

  print(flags.call(report.report, options))
