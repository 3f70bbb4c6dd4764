"""`python -m secateur`, which is also what `torchrun` and `accelerate launch` start."""

from secateur.cli import main

main()
