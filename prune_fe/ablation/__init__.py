"""Measure how much a network's accuracy and loss depend on its units, by masking them on test images."""
