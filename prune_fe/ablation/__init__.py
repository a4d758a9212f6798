"""Measure what units are worth by masking them and running the network on test images."""
