"""Data sets by name; images are float32 in [0, 1] wherever a model sees them."""
