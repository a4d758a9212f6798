"""Networks: build by name, read checkpoints, save, load and export."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune_fe.models.small_vgg import SmallVGG

__all__ = ["SmallVGG"]


def __getattr__(name: str) -> Any:
    # A recipe is checked with `arguments.py` before torch, which the network needs, is loaded.
    if name != "SmallVGG":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prune_fe.models.small_vgg import SmallVGG

    return SmallVGG
