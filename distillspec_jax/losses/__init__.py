"""From the logits of target and draft to one differentiable number."""
