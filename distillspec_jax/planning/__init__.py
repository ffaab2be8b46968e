"""A run -> what it needs on a TPU slice, without having one."""
