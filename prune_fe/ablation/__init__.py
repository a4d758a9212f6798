"""Measure what units are worth by masking them."""
