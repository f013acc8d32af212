"""What methods cost: a training step and decoding, all methods side by side on the same frozen weights."""
