"""How the scripts that compare drafts train and measure them."""

import sys

_COMMAND = (sys.executable, '-m', 'distillspec_jax')
# As in gin_configs/experiments/quickstart.gin.
TRAIN = (
    *_COMMAND,
    'train',
    '--gin_file=methods/on_policy_gkd.gin',
    '--gin.settings.Steps.checkpoint_every=200',
    '--gin.settings.Validation.every=200',
    "--gin.optimizers.Optimizer.name='adamw'",
    '--gin.optimizers.Optimizer.warmup_steps=40',
)
EVALUATE = (
    *_COMMAND,
    'evaluate',
    '--gin_file=runs/evaluate.gin',
    '--gin.acceptance.evaluate.examples=384',
    '--gin.decoding.grid.block_lengths=(5,)',
)
