"""ImageNet (Russakovsky et al. 2015), in torchvision's format."""

from __future__ import annotations

from pathlib import Path

from prune_fe.data.assemble import Reading
from prune_fe.data.image_folder import read_folder
from prune_fe.data.options import DataOptions
from prune_fe.data.splits import Splits
from prune_fe.data.transforms import read_image, read_image_fast
from prune_fe.errors import DataError, first_line

ARCHIVES = "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"
"""The files that image-net.org gives to people who have registered there."""


def load(options: DataOptions, *, reading: Reading) -> Splits:
    """Read the images for `prune_fe.data.registry.load_data`.

    The folder holds train/<wnid>/* and val/<wnid>/*. Where they are missing, torchvision unpacks the archives of
    image-net.org in it. The classes are the WordNet ids, in the order of the outputs of networks for ImageNet.

    Raises:
        DataError: The folder holds neither the images nor the archives.
    """
    from torchvision.datasets import ImageNet

    assert options.path is not None
    root = Path(options.path)
    for part in ("train", "val"):
        if not (root / part).is_dir():
            try:
                ImageNet(root, part)
            except (OSError, RuntimeError) as error:
                raise DataError(
                    f"{root}: neither the folder {part} nor the archives of ImageNet that it is unpacked from "
                    f"({first_line(error)}); image-net.org gives {ARCHIVES}"
                ) from error
    read = read_image_fast if options.decoder == "torchvision" else read_image
    return read_folder(root, reading, read, options.skip_bad)
