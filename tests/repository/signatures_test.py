"""No public function has many parameters: what belongs together is a value."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).parents[2] / 'distillspec_jax'
MAX_PARAMETERS = 12
# For people at a prompt; it also takes all of them as one value, a `Decoding`.
FLAT = 'sampling/generation.py: generate'


def parameters(source: str) -> dict[str, int]:
  """Public function -> how many parameters it has."""
  counts = {}
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
      arguments = node.args
      counts[node.name] = len(
          [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
      ) + bool(arguments.vararg)
  return counts


def test_all_kinds_of_parameters_are_counted():
  assert parameters('def f(a, /, b, *c, d): pass\ndef _g(): pass') == {'f': 4}


def test_no_public_function_has_too_many_parameters():
  many = [
      f'{file.relative_to(PACKAGE)}: {name}'
      for file in sorted(PACKAGE.rglob('*.py'))
      for name, count in parameters(file.read_text()).items()
      if count > MAX_PARAMETERS
  ]
  assert many == [FLAT]
