"""A linear layer as sums over units gives what the rest of the network gives with units masked (its slow twin)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prune_fe.tracing.layers import find_layers
from prune_fe.tracing.split import SplitNetwork, split
from prune_fe.tracing.unit_sums import LinearTail, find_linear_tail, masked_sums

UNITS = 6


def vgg_tail() -> nn.Sequential:
    """Pooling to 2×2 positions, and two hidden layers."""
    hidden = [nn.Linear(4 * UNITS, 7), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4)]
    return nn.Sequential(
        nn.Conv2d(3, UNITS, 3), nn.BatchNorm2d(UNITS), nn.ReLU(inplace=True), nn.MaxPool2d(3), nn.Flatten(), *hidden
    )


def global_pooling() -> nn.Sequential:
    """One position, and no layer behind the linear one."""
    return nn.Sequential(
        nn.Conv2d(3, UNITS, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(UNITS, 4, bias=False)
    )


def covering_convolution() -> nn.Sequential:
    """The kernel of the second convolution is as large as the map."""
    return nn.Sequential(
        nn.Conv2d(3, UNITS, 3), nn.Sigmoid(), nn.AvgPool2d(3), nn.Conv2d(UNITS, 5, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(5, 4),
    )  # fmt: skip


class Residual(nn.Module):
    """The values of a masked unit differ from image to image, and the part behind the linear layer reads another one.

    Its code takes the number of images from the shape of the maps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, UNITS, 1), nn.Conv2d(UNITS, UNITS, 3, padding=1)
        self.hidden, self.beside, self.classify = nn.Linear(UNITS * 16, 5), nn.Linear(UNITS, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        x = nn.functional.max_pool2d((self.conv(skip) + skip).sigmoid(), 2)
        x = self.hidden(x.view(x.size(0), -1))
        return self.classify((x + self.beside(skip.mean((2, 3)))).relu())


def in_parts(model: nn.Module, layer: str, dtype: torch.dtype) -> tuple[SplitNetwork, Tensor]:
    model, images = model.to(dtype).eval(), torch.randn(5, 3, 8, 8, dtype=dtype)
    network = split(model, find_layers(model, images, [layer])[0], images[:2])
    assert isinstance(network, SplitNetwork)
    return network, images


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("cumulative", [True, False])
@pytest.mark.parametrize(
    ("make", "layer"),
    [(vgg_tail, "0"), (global_pooling, "0"), (covering_convolution, "0"), (Residual, "conv")],
)
def test_sums_give_what_the_rest_gives(
    make: Callable[[], nn.Module], layer: str, cumulative: bool, dtype: torch.dtype, tolerance: float
) -> None:
    network, images = in_parts(make(), layer, dtype)
    tail = find_linear_tail(network, images[:2])
    assert tail is not None
    keep = torch.ones(UNITS + 1, UNITS).tril(-1).flip(0).bool() if cumulative else torch.rand(4, UNITS) < 0.5
    with torch.no_grad():
        inputs = network.tail_inputs(images)
        logits = tail.logits(tail.unit_sums(inputs), keep)
        torch.testing.assert_close(logits, network.logits(inputs, keep), rtol=tolerance, atol=tolerance)
        first = tail.logits(tail.unit_sums(inputs.select(slice(2, 3))), keep)
    torch.testing.assert_close(first, logits[:, 2:3], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("constant", [True, False])
def test_masked_sums_add_the_kept_rows(constant: bool) -> None:
    """Whether few units change from mask to mask, as in cumulative ablation, or many."""
    terms = torch.ones(8, 3) if constant else torch.randn(8, 3, dtype=torch.float64)
    one_by_one = torch.ones(9, 8).tril(-1).bool()
    alone = torch.cat([torch.ones(1, 8, dtype=torch.bool), ~torch.eye(8, dtype=torch.bool)])
    for keep in (one_by_one, one_by_one.flip(0), alone, torch.rand(5, 8) < 0.5, alone[:1], ~one_by_one[[0, 8, 0]]):
        expected = torch.stack([terms[row].sum(0) for row in keep])
        torch.testing.assert_close(masked_sums(terms, keep), expected, rtol=1e-12, atol=1e-12)


def test_memory_is_that_of_the_terms() -> None:
    network, images = in_parts(vgg_tail(), "0", torch.float32)
    tail = find_linear_tail(network, images[:2])
    assert isinstance(tail, LinearTail)
    terms = tail.unit_sums(network.tail_inputs(images)).terms
    assert terms.shape == (UNITS, 5, 7)
    assert tail.image_bytes == terms[:, 0].nbytes
    assert tail.row_bytes == 7 * 4


class OtherRest(nn.Module):
    """What stands between the maps and the linear layer, or reads them beside it, is more than another shape."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, UNITS, 3), kind
        self.linear, self.other = nn.Linear(UNITS * 4, 4), nn.Linear(UNITS * 4, 4)
        self.mix = nn.Conv2d(UNITS, UNITS, 2, padding=1)
        if kind == "hook":
            self.linear.register_forward_pre_hook(lambda _, given: (given[0] * 2,))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.conv(x).relu(), 3)
        if self.kind == "convolution":
            x = self.mix(x)[:, :, 1:, 1:]
        if self.kind == "order":
            x = x.permute(0, 2, 3, 1)
        x = x.flatten(1)
        if self.kind == "none":
            return x[:, :4].cos()
        if self.kind == "softmax":
            x = x.softmax(1)
        if self.kind == "clamp":
            x = x.clamp(max=50)  # nothing of these images is as large
        return self.linear(x) * self.other(x) if self.kind == "beside" else self.linear(x)


@pytest.mark.parametrize("kind", ["convolution", "order", "softmax", "clamp", "beside", "hook", "none"])
def test_another_rest_is_not_cut(kind: str) -> None:
    network, images = in_parts(OtherRest(kind), "conv", torch.float32)
    assert find_linear_tail(network, images[:2]) is None
