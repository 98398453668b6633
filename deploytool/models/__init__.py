"""Backbones, their registry, and the conditional state."""
