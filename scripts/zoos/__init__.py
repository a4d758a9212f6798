"""What scripts/zoo.py is made of."""
