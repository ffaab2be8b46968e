"""The scripts of benchmarks/ are modules here, as they are for each other."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
