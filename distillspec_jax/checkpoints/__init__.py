"""Parameters and training state <-> disk."""
