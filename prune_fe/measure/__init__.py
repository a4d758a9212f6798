"""Measure networks: accuracy, cost and latency, and statistics of these measurements."""
