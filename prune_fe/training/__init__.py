"""Train networks, and adapt batch norms and optimizers to a pruned network."""
