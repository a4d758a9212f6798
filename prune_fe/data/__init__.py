"""Images: where they come from, and which of them are read."""
