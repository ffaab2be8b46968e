"""A run -> what it needs on a TPU slice, found out without having one."""
