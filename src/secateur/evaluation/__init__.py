"""Measure a model on examples, without computing anything twice."""
