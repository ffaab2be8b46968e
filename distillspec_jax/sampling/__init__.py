"""Logits -> tokens: warping, autoregressive and speculative generation."""
