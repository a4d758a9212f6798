"""Train and fine-tune networks, recalibrate batch norms, and carry optimizer state across a cut."""
