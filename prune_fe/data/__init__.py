"""Images: one file for each data source, the registry of sources, splits, samples and batches."""
