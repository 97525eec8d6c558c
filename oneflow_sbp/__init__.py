"""Layouts of global tensors."""
