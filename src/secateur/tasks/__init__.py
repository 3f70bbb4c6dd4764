"""What a model is judged on: examples, splits, encodings."""
