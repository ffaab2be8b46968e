"""Batch -> logits: T5 as encoder-decoder and as decoder-only model."""
