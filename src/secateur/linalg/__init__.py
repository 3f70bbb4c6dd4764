"""Pure tensor functions. Knows torch; nothing of ours."""
