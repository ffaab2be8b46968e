"""Text -> Batch: tasks, vocabularies, resumable batches.

TensorFlow and seqio are imported here alone, and only when they are used.
"""
