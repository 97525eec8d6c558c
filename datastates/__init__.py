"""Lazy asynchronous checkpoints of PyTorch training state."""
