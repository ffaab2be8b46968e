"""Verifiers: which drafted tokens are accepted. One file each, one line here.

lossless   `Token`, `Block`
lossy      `Lenient`, `Typical`, `Simulated`
"""

from distillspec_jax.core import objects as _objects
from distillspec_jax.sampling.verification.block import Block
from distillspec_jax.sampling.verification.lenient import Lenient
from distillspec_jax.sampling.verification.simulated import Simulated
from distillspec_jax.sampling.verification.token import Token
from distillspec_jax.sampling.verification.typical import Typical
from distillspec_jax.sampling.verification.verifier import Verdict
from distillspec_jax.sampling.verification.verifier import Verifier

_BY_NAME = {
    name.lower(): value
    for name, value in dict(globals()).items()
    if isinstance(value, type)
    and issubclass(value, Verifier)
    and value is not Verifier
}


def parse(text: str) -> Verifier:
  """The verifier of a text such as 'block' or 'lenient(linear, 0.5)'.

  Raises:
    UserError: there is no such verifier, or its arguments are wrong.
  """
  return _objects.parse(text, _BY_NAME, 'verifier')


__all__ = [
    'Block', 'Lenient', 'Simulated', 'Token', 'Typical', 'Verdict', 'Verifier',
    'parse',
]  # fmt: skip
