"""The device mesh, where arrays lie on it, and the hosts of a run."""
