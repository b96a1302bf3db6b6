"""Training of networks: the loop, its hooks, and checkpoints."""
