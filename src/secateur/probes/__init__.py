"""Read a model for what matters in it: one file for each way."""
