"""Propose plans. Knows values only: the callables that judge and read a model are handed in."""
