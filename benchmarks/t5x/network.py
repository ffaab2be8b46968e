"""t5x's T5 of a given configuration, for the servers beside this file."""

import jax
import seqio
from t5x import adafactor
from t5x import checkpoints
from t5x import models
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
  """The model of a configuration in our words.

  Args:
    config: dictionary with `SIZES`.
    decode_fn: of `t5x.decoding`.
    **options: of `EncoderDecoderModel`.
  """
  values = {name: config[name] for name in SIZES}
  values['mlp_activations'] = tuple(values['mlp_activations'])
  vocabulary = seqio.PassThroughVocabulary(config['vocab_size'])
  optimizer = adafactor.Adafactor(
      decay_rate=0.8,
      step_offset=0,
      logical_factor_rules=adafactor.standard_logical_factor_rules(),
  )
  return models.EncoderDecoderModel(
      network.Transformer(network.T5Config(**values)),
      vocabulary,
      vocabulary,
      optimizer,
      decode_fn=decode_fn,
      **options,
  )


def params(folder: str):
  """The parameters in checkpoint_0 of a folder."""
  return checkpoints.load_t5x_checkpoint(folder, step=0)['target']


def about() -> dict:
  """Versions and device, for the head of a table."""
  kind = jax.devices()[0].device_kind
  return {
      't5x': 'cc342d4',
      'jax': jax.__version__,
      'device': f'{jax.device_count()} x {kind}',
  }
