"""What a network does when it runs: its feature maps, its dependency graph, and how it splits behind a layer."""
