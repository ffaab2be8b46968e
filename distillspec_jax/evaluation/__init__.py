"""A pair of models -> numbers: acceptance, task quality, wall clock."""
