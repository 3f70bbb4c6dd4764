"""One file per way of reading a model for what matters in it."""
