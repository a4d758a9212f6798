"""Measure networks: accuracy, cost, latency, and the statistics of what was measured."""
