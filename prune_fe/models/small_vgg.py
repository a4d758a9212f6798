"""A small VGG, for images of 32×32 pixels and less."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

SMALL_VGG = "vgg-small"
"""Its name in `build` and in manifests."""


class SmallVGG(nn.Module):
    """VGG (Simonyan & Zisserman 2014) in small: 3×3 convolutions with batch norm, then linear layers.

    Args:
        classes: Number of outputs.
        channels: Number of channels of the images.
        stages: The number of units of each convolution of each stage; a pooling between stages halves the map.
        hidden: Widths of hidden linear layers in front of the last one, each with a ReLU and dropout, as VGG has two.
        dropout: Rate of the dropout behind each hidden layer.
        pool: Height and width to which the last maps are averaged in front of the linear layers; VGG has 7.

    Attributes:
        arguments: The arguments it was built with, as JSON can express them.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        stages: Sequence[Sequence[int]] = ((16, 16), (32, 32), (64, 64)),
        hidden: Sequence[int] = (),
        dropout: float = 0.5,
        pool: int = 1,
    ) -> None:
        super().__init__()
        self.arguments = {"classes": classes, "channels": channels, "stages": [list(stage) for stage in stages]}
        if hidden:  # manifests of networks without it stay as they were
            self.arguments |= {"hidden": list(hidden), "dropout": dropout}
        if pool > 1:
            self.arguments["pool"] = pool
        features: list[nn.Module] = []
        for number, stage in enumerate(stages):
            features += [nn.MaxPool2d(2)] if number else []
            for width in stage:
                features += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        channels *= pool**2
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(channels, width), nn.ReLU(), nn.Dropout(dropout)]
            channels = width
        last = nn.Linear(channels, classes)
        self.classifier = nn.Sequential(*layers, last) if layers else last
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (n, classes) of images (n, channels, height, width)."""
        return self.classifier(self.pool(self.features(images)).flatten(1))


SmallVGG.__module__ = "prune_fe.models"  # Manifests of saved networks hold this name, wherever the class is defined.
