"""What both servers share: t5x's T5 of a configuration, and the requests."""

from collections.abc import Callable
import json
import os
import sys

import jax
import seqio
from t5x import adafactor
from t5x import checkpoints
from t5x import models
from t5x import partitioning
from t5x import utils
from t5x.examples.t5 import network

SIZES = (
    'vocab_size',
    'emb_dim',
    'num_heads',
    'head_dim',
    'mlp_dim',
    'num_encoder_layers',
    'num_decoder_layers',
    'mlp_activations',
    'logits_via_embedding',
    'dropout_rate',
    'dtype',
)


def model(config, decode_fn, **options) -> models.EncoderDecoderModel:
  """The model of one of our configurations.

  Args:
    config: dictionary with `SIZES`.
    decode_fn: of `t5x.decoding`.
    **options: of `EncoderDecoderModel`.
  """
  values = {name: config[name] for name in SIZES}
  values['mlp_activations'] = tuple(values['mlp_activations'])
  return encoder_decoder(
      network.Transformer(network.T5Config(**values)),
      config['vocab_size'],
      decode_fn=decode_fn,
      **options,
  )


def encoder_decoder(module, vocab_size, **options):
  vocabulary = seqio.PassThroughVocabulary(vocab_size)
  return models.EncoderDecoderModel(
      module, vocabulary, vocabulary, optimizer(), **options
  )


def decoder_only(module, vocab_size):
  vocabulary = seqio.PassThroughVocabulary(vocab_size)
  return models.DecoderOnlyModel(module, vocabulary, optimizer())


def optimizer():
  return adafactor.Adafactor(
      decay_rate=0.8,
      step_offset=0,
      logical_factor_rules=adafactor.standard_logical_factor_rules(),
  )


def initializer(model, shapes):
  """What makes a model's train state, and how it is laid out."""
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  return (
      utils.TrainStateInitializer(
          model.optimizer_def, model.get_initial_variables, shapes, partitioner
      ),
      partitioner,
  )


def params(folder: str):
  """The parameters in checkpoint_0 of a folder."""
  return checkpoints.load_t5x_checkpoint(folder, step=0)['target']


def serve(answer: Callable[[dict], dict | None]) -> None:
  """Answers each line of standard input with one on standard output.

  Args:
    answer: of a request; None, after a request that loads a model, becomes the
      versions and the device.
  """
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is no answer
  for line in sys.stdin:
    out.write(json.dumps(answer(json.loads(line)) or about()) + '\n')
    out.flush()


def about() -> dict:
  kind = jax.devices()[0].device_kind
  return {
      't5x': 'cc342d4',
      'jax': jax.__version__,
      'device': f'{jax.device_count()} x {kind}',
  }
