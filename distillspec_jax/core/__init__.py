"""The vocabulary that every stage shares: types, shapes, randomness, mesh."""
