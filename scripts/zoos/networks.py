"""The networks of the zoo: their names, those that are written here, and inputs for each."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoos.tested import SMALL, TESTED

TORCHVISION = (
    "alexnet vgg11 vgg16_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 googlenet inception_v3:128 "
    "squeezenet1_1 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 efficientnet_b0 efficientnet_v2_s "
    "regnet_x_400mf regnet_y_400mf convnext_tiny shufflenet_v2_x0_5 shufflenet_v2_x1_0 vit_b_16:224 swin_t maxvit_t:224"
).split()
SEGMENTATION = "fcn_resnet50 deeplabv3_resnet50 lraspp_mobilenet_v3_large".split()
DETECTION = (
    "ssdlite320_mobilenet_v3_large:320 retinanet_resnet50_fpn:96 fcos_resnet50_fpn:96 fasterrcnn_resnet50_fpn:96"
).split()
TIMM = (
    "resnet18 resnetv2_50 resnetv2_50x1_bit resnetaa50 resnetrs50 resnet51q seresnet50 ecaresnet26t skresnet18 "
    "legacy_seresnet18 eca_resnext26ts gcresnet33ts gernet_s bat_resnext26ts:256 botnet26t_256:256 res2net50_26w_4s "
    "resnest14d dla34 dla60_res2net dpn68 densenet121 densenetblur121d rdnet_tiny vovnet39a ese_vovnet19b_dw "
    "cspresnet50 cspdarknet53 cs3darknet_s cspnext_tiny darknet53 hrnet_w18_small legacy_xception:96 xception41:96 "
    "inception_v4:128 inception_resnet_v2:128 vgg11 repvgg_a0 mobileone_s0 nfnet_l0 dm_nfnet_f0 regnetx_002 "
    "regnety_002 regnetz_005 "
    "efficientnet_b0 efficientnet_b0_g8_gn tf_efficientnetv2_b0 efficientnet_lite0 mixnet_s mnasnet_100 "
    "mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small lcnet_050 lcnetv2_small tinynet_e fbnetc_100 "
    "hardcorenas_a ghostnet_100 ghostnetv3_100 repghostnet_050 rexnet_100 hgnet_tiny hgnetv2_b0 selecsls42 tresnet_m "
    "convnext_atto convnextv2_atto inception_next_atto convmixer_768_32 fasternet_t0 mambaout_femto starnet_s050 "
    "poolformer_s12 poolformerv2_s12 convformer_s18 repvit_m0_9 shvit_s1 nasnetalarge:128 pnasnet5large:128 "
    "test_resnet vit_tiny_patch16_224:224 deit_tiny_patch16_224:224 swin_tiny_patch4_window7_224:224 "
    "efficientformer_l1:224 mobilevit_xxs:64"
).split()
"""The names may end in the height and width of the images."""

SIZE = 64
"""Height and width of the images where a name does not say otherwise."""


class Block(nn.Module):
    """A residual block without weights in its shortcut."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs)
        self.conv2, self.bn2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs)
        self.stride, self.padding = stride, (outs - ins) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input, which is subsampled and padded with channels of zeros."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + F.pad(short, (0, 0, 0, 0, self.padding, self.padding)))


class CifarResNet(nn.Module):
    """ResNet-20 of He et al. 2016, section 4.2: shortcuts without weights, padded with zeros (option A)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.conv, self.bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*(Block(a, b, b // a) for a, b in itertools.pairwise(widths)))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (images, classes)."""
        return self.head(self.blocks(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def _two_convolutions(ins: int, outs: int) -> nn.Sequential:
    layers = [(nn.Conv2d(a, outs, 3, padding=1, bias=False), nn.BatchNorm2d(outs), nn.ReLU()) for a in (ins, outs)]
    return nn.Sequential(*itertools.chain(*layers))


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) with norms, padding and transposed convolutions."""

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in itertools.pairwise([3, *widths]))
        upwards = list(itertools.pairwise(reversed(widths)))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in upwards)
        self.merge = nn.ModuleList(_two_convolutions(a, b) for a, b in upwards)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (images, classes, height, width)."""
        skipped: list[Tensor] = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if skipped else x)
            skipped.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skipped[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


def _convolution(ins: int, outs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outs), nn.SiLU())


class CrossStage(nn.Module):
    """The block of YOLOv8: one half of the channels goes through residual blocks, and every stage is kept."""

    def __init__(self, ins: int, outs: int, repeats: int = 1, is_residual: bool = True) -> None:
        super().__init__()
        self.hidden, self.is_residual = outs // 2, is_residual
        self.first, self.last = _convolution(ins, outs), _convolution((2 + repeats) * self.hidden, outs)
        self.blocks = nn.ModuleList(
            nn.Sequential(_convolution(self.hidden, self.hidden, 3), _convolution(self.hidden, self.hidden, 3))
            for _ in range(repeats)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same size."""
        stages = list(self.first(x).split((self.hidden, self.hidden), 1))
        for block in self.blocks:
            y = block(stages[-1])
            stages.append(stages[-1] + y if self.is_residual else y)
        return self.last(torch.cat(stages, 1))


class PyramidPooling(nn.Module):
    """Max pooling with windows of three sizes, by pooling again and again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = _convolution(width, width // 2), _convolution(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps of the same size."""
        maps = [self.first(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        return self.last(torch.cat(maps, 1))


class Yolo(nn.Module):
    """A detector with the parts of YOLOv8: cross-stage blocks, a pyramid that goes up and down, and a head of bins."""

    positions: Tensor

    def __init__(self, classes: int = 10, width: int = 16, bins: int = 8) -> None:
        super().__init__()
        w2, w4, w8, w16 = 2 * width, 4 * width, 8 * width, 16 * width
        self.stem = nn.Sequential(_convolution(3, width, 3, 2), _convolution(width, w2, 3, 2), CrossStage(w2, w2))
        self.stage3 = nn.Sequential(_convolution(w2, w4, 3, 2), CrossStage(w4, w4, 2))
        self.stage4 = nn.Sequential(_convolution(w4, w8, 3, 2), CrossStage(w8, w8, 2))
        self.stage5 = nn.Sequential(_convolution(w8, w16, 3, 2), CrossStage(w16, w16), PyramidPooling(w16))
        self.up4, self.up3 = CrossStage(w16 + w8, w8, 1, False), CrossStage(w8 + w4, w4, 1, False)
        self.down4, self.down5 = _convolution(w4, w4, 3, 2), _convolution(w8, w8, 3, 2)
        self.out4, self.out5 = CrossStage(w4 + w8, w8, 1, False), CrossStage(w8 + w16, w16, 1, False)
        self.class_count, self.bins = classes, bins
        self.boxes, self.labels = (
            nn.ModuleList(
                nn.Sequential(_convolution(w, w4, 3), _convolution(w4, w4, 3), nn.Conv2d(w4, outputs, 1))
                for w in (w4, w8, w16)
            )
            for outputs in (4 * bins, classes)
        )
        self.register_buffer("positions", torch.arange(float(bins)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sides and the classes of every box, (images, 4 + classes, boxes)."""
        c3 = self.stage3(self.stem(x))
        c4 = self.stage4(c3)
        c5 = self.stage5(c4)
        p4 = self.up4(torch.cat([F.interpolate(c5, scale_factor=2), c4], 1))
        p3 = self.up3(torch.cat([F.interpolate(p4, scale_factor=2), c3], 1))
        p4 = self.out4(torch.cat([self.down4(p3), p4], 1))
        p5 = self.out5(torch.cat([self.down5(p4), c5], 1))
        levels = zip((p3, p4, p5), self.boxes, self.labels, strict=True)
        predictions = torch.cat([torch.cat([boxes(p), labels(p)], 1).flatten(2) for p, boxes, labels in levels], 2)
        bins, logits = predictions.split((4 * self.bins, self.class_count), 1)
        # A side is the mean of the positions, weighted by a softmax over the bins.
        share = bins.view(len(x), 4, self.bins, -1).softmax(2)
        sides = (share * self.positions.view(-1, 1)).sum(2)
        return torch.cat([sides, logits.sigmoid()], 1)


HERE = {"cifar_resnet20": CifarResNet, "unet": UNet, "yolo": Yolo}
"""The networks that are written in this file."""


def list_networks() -> list[str]:
    """Return the names of all networks, with the size of their images where it is not SIZE."""
    torchvision = (f"torchvision/{name}" for name in (*TORCHVISION, *SEGMENTATION, *DETECTION))
    tested = (*(f"tested/{name}" for name in SMALL), *(f"torchvision/{name}" for name in TESTED))
    return [*torchvision, *(f"timm/{name}" for name in TIMM), *HERE, *tested]


def is_detector(name: str) -> bool:
    """Return whether a network takes a list of images and returns boxes."""
    return any(name == f"torchvision/{entry.partition(':')[0]}" for entry in DETECTION)


def find_box_layers(model: nn.Module) -> list[Any]:
    """Return the layers of a detector that compute how far its boxes are from their anchors."""
    last = ("bbox_pred", "bbox_reg")
    return [
        module
        for name, module in model.named_modules()
        if name.endswith(last)
        or (name.startswith("head.regression_head.module_list.") and isinstance(module, nn.Conv2d))
    ]


def is_classifier(name: str) -> bool:
    """Return whether `prune_fe.build` can build a network."""
    group, _, model = name.rpartition("/")
    return group in ("torchvision", "timm") and not is_detector(name) and model not in SEGMENTATION


def build_network(name: str, size: int = SIZE) -> nn.Module:
    """Build a network of ten classes, with random weights.

    Args:
        name: Its name, without a size.
        size: Height and width of the images that it will get.
    """
    from prune_fe import build

    if name in HERE:
        return HERE[name]()
    if name.startswith("tested/"):
        return SMALL[name.removeprefix("tested/")][0]()
    if is_classifier(name):
        heads = {"aux_logits": False} if name in ("torchvision/googlenet", "torchvision/inception_v3") else {}
        return build(name, 10, **heads)
    from torchvision.models import get_model

    # The other detectors enlarge the images that they get to 800 pixels.
    sizes = {"min_size": size, "max_size": size} if is_detector(name) and "ssdlite" not in name else {}
    return get_model(name.partition("/")[2], weights=None, weights_backbone=None, num_classes=10, **sizes)


def draw_inputs(name: str, size: int, images: int, dtype: torch.dtype = torch.float32) -> Any:
    """Return random images as a network takes them: a tensor, or a list of images for a detector.

    Networks of torch-pruning's tests take rows or maps, and one of them two inputs.
    """
    if name.startswith("tested/"):
        shapes = SMALL[name.removeprefix("tested/")][1]
        generator = torch.Generator().manual_seed(1)
        named = shapes if isinstance(shapes, dict) else {"x": shapes}
        rows = {key: torch.randn(images, *shape, generator=generator, dtype=dtype) for key, shape in named.items()}
        return rows if isinstance(shapes, dict) else rows["x"]
    drawn = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return list(drawn.sigmoid()) if is_detector(name) else drawn
