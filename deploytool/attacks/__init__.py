"""Attacks that run inside training, and their names for evaluation."""
