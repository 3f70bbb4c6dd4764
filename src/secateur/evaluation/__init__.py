"""Measures what a model does on examples, without doing anything twice."""
