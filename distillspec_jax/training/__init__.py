"""Rollouts, one training step, the loop: fine-tuning and distillation."""
