"""`python -m distillspec_jax`, the same as the command `distillspec`."""

from distillspec_jax.commands import main

if __name__ == '__main__':
  main.run()
