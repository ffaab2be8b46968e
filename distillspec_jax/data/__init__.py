"""Text -> Batch: tasks, vocabularies, resumable batches.

seqio and TensorFlow are imported here alone, and only for a task of seqio's
registry.
"""
