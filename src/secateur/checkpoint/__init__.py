"""Writes, reads and proves checkpoints."""
