"""Wall-clock time of decoding, and the choice of block length from it."""
