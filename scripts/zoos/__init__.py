"""The parts of scripts/zoo.py: the networks, torch-pruning's cut of them, and the report."""
