"""The only code that changes a model."""
