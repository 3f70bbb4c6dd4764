"""Write, read and prove checkpoints."""
