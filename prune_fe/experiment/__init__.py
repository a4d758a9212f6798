"""Experiments: the recipe, the run folder, the tasks, and the method on one page (run.py)."""
