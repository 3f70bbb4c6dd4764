"""Training: the weights themselves change. Knows tasks and checkpoints, no search and no cut."""
