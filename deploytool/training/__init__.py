"""Training: one loop, methods as functions, checkpoints without pickle."""
