"""Result files -> tables, figures, one self-contained page; without JAX."""
