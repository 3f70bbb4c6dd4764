"""Tasks: examples, splits, encodings."""
