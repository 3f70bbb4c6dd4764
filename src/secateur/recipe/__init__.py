"""Recipes: a file that says a prune and what follows it, in the names of the flags."""
