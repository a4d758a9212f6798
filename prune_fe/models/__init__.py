"""Networks: build by name, read checkpoints, save, load and export."""

from prune_fe.models.small_vgg import SmallVGG

__all__ = ["SmallVGG"]
