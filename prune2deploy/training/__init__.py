"""Training, evaluation, and the recalibration of batch-norm statistics."""
