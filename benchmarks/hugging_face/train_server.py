"""An on-policy distillation step in plain PyTorch, timed on request.

Runs in an environment of its own (requirements.txt), on a GPU if torch has one,
in float32. What one would write with transformers: the draft samples with
`generate`, the target reads the samples without a gradient, forward KL, AdamW.
Reads one JSON object per line from standard input and answers each with one on
standard output:

  {"target": FOLDER, "draft": FOLDER, "learning_rate": R}   loads both
  {"inputs": [[...]], "length": N, "seed": S}               times one step
  {"inputs": [[...]], "labels": [[...]]}                    the loss on labels
"""

import contextlib
import time

import server
import torch

BETAS = (0.9, 0.98)


def main() -> None:
  trainer = None

  def answer(request: dict) -> dict | None:
    nonlocal trainer
    if 'draft' in request:
      trainer = Trainer(request)
      return None
    inputs = torch.tensor(request['inputs'], device=server.DEVICE)
    if 'labels' in request:
      labels = torch.tensor(request['labels'], device=server.DEVICE)
      return {'loss': trainer.loss_on(inputs, labels)}
    torch.manual_seed(request['seed'])
    return trainer.step(inputs, request['length'])

  server.serve(answer)


class Trainer:
  """A target, a draft, and the draft's optimizer."""

  def __init__(self, request):
    self.target = server.load(request['target'])
    self.draft = server.load(request['draft'])
    self.optimizer = torch.optim.AdamW(
        self.draft.parameters(),
        lr=request['learning_rate'],
        betas=BETAS,
        eps=1e-8,
        weight_decay=0.0,
    )

  def step(self, inputs: torch.Tensor, length: int) -> dict:
    """Seconds of the step and of its parts."""
    parts = {}
    began = now()
    with timing(parts, 'sampling'), torch.no_grad():
      tokens = self.draft.generate(
          inputs,
          attention_mask=torch.ones_like(inputs),
          max_new_tokens=length,
          do_sample=True,
          temperature=1.0,
          top_k=0,
          top_p=1.0,
      )
    read, count = tokens[:, :-1], tokens[:, 1:].numel()
    with timing(parts, 'target'), torch.no_grad():
      log_p = log_probabilities(self.target, inputs, read)
    with timing(parts, 'draft_forward'):
      loss = divergence(log_p, log_probabilities(self.draft, inputs, read))
      loss = loss.sum() / count
    with timing(parts, 'draft_backward'):
      self.optimizer.zero_grad(set_to_none=True)
      loss.backward()
    with timing(parts, 'optimizer'):
      self.optimizer.step()
    return {'seconds': now() - began, 'parts': parts, 'loss': loss.item()}

  @torch.no_grad()
  def loss_on(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """The loss per token; nothing is sampled."""
    read = torch.nn.functional.pad(labels, (1, 0))[:, :-1]
    log_p, log_q = (
        log_probabilities(model, inputs, read)
        for model in (self.target, self.draft)
    )
    return divergence(log_p, log_q).mean().item()


def log_probabilities(model, inputs, read) -> torch.Tensor:
  logits = model(
      input_ids=inputs,
      attention_mask=torch.ones_like(inputs),
      decoder_input_ids=read,
      use_cache=False,
  ).logits
  return torch.log_softmax(logits, dim=-1)


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
  """Forward KL, in nats, of each position."""
  return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def now() -> float:
  server.synchronize()
  return time.perf_counter()


@contextlib.contextmanager
def timing(parts: dict, name: str):
  began = now()
  yield
  parts[name] = now() - began


if __name__ == '__main__':
  main()
