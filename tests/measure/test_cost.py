"""Cost of networks, against torch's own counter, and their speed."""

import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prune_fe import build, cost, speed
from prune_fe.measure.cost import Cost, cost_by_module
from prune_fe.models.small_vgg import SmallVGG


def counted(model: nn.Module, example: torch.Tensor) -> int:
    """Multiply-adds as torch's dispatcher sees them.

    The counter does not know the fused kernel that attention has on the CPU and leaves it out; the math kernel consists
    of matrix products.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.eval()(example)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "densenet121", "resnext50_32x4d", "timm/vit_tiny_patch16_224"]
)
def test_the_multiply_adds_are_those_of_torchs_counter(name: str) -> None:
    model, image = build(name, 1000), torch.zeros(1, 3, 224, 224)
    assert cost(model, image).macs == counted(model, image)


class Attention(nn.Module):
    """Attention with keys of another number than the queries, and values of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        query, key, value = torch.zeros(1, 3, 7, 4), torch.zeros(1, 3, 5, 4), torch.zeros(1, 3, 5, 6)
        return nn.functional.scaled_dot_product_attention(query * self.scale, key, value) + images.mean()


def test_the_multiply_adds_of_attention_are_those_of_its_two_products() -> None:
    macs = 3 * (7 * 5 * 4 + 7 * 5 * 6)  # heads × (queries × keys × width + queries × keys × width of the values)
    assert cost(Attention(), torch.zeros(1, 3, 2, 2)).macs == macs


def test_a_vision_transformer_has_the_multiply_adds_of_its_shapes() -> None:
    tokens, width, depth = 14 * 14 + 1, 192, 12
    block = 2 * tokens**2 * width + 12 * tokens * width**2
    macs = 14 * 14 * 3 * 16 * 16 * width + depth * block + 1000 * width
    assert cost(build("timm/vit_tiny_patch16_224", 1000), torch.zeros(1, 3, 224, 224)).macs == macs == 1_253_683_200


@pytest.mark.parametrize("category", ["FutureWarning", "DeprecationWarning"])
def test_the_import_of_fvcore_is_silent(category: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of torch differ in how they warn of what fvcore does when it is imported."""
    (tmp_path / "fvcore").mkdir()
    (tmp_path / "fvcore/__init__.py").write_text("")
    (tmp_path / "fvcore/nn.py").write_text(
        f"import warnings\nwarnings.warn('`torch.jit.script` is deprecated', {category})\nFlopCountAnalysis = int"
    )
    monkeypatch.syspath_prepend(tmp_path)
    others = {name: module for name, module in sys.modules.items() if name.partition(".")[0] != "fvcore"}
    with mock.patch.dict(sys.modules, others, clear=True), pytest.raises(TypeError, match="int"):
        cost(nn.Linear(1, 1), torch.zeros(1, 1))


def test_vgg16_has_the_papers_parameters_and_flops() -> None:
    model, image = build("vgg16", 1000), torch.zeros(1, 3, 224, 224)
    found = cost(model, image)
    assert found.parameters == 138_357_544
    assert found.macs == counted(model, image)
    assert found.flops == 2 * found.macs == pytest.approx(30.94e9, abs=5e6)


def test_transposed_and_one_dimensional_convolutions_are_counted() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.Flatten(2), nn.Conv1d(6, 3, 3))
    image = torch.zeros(1, 4, 5, 7)
    assert cost(model, image).macs == counted(model, image) > 0


def test_a_convolution_whose_padding_has_a_name_is_counted() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding="same", groups=2), nn.Conv2d(8, 6, 3, padding="valid"))
    image = torch.zeros(1, 4, 10, 9)
    assert cost(model, image).macs == counted(model, image) == 10 * 9 * 8 * 2 * 9 + 8 * 7 * 6 * 8 * 9
    assert cost_by_module(model, image)["0"].macs == 10 * 9 * 8 * 2 * 9


class Pooled(nn.Module):
    """Places that are weighted by a product with a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        places = images.flatten(2).mT
        return torch.ones(2, 4) @ (places * (places @ self.query)[..., None])


def test_products_with_vectors_and_with_several_matrices_are_counted() -> None:
    assert cost(Pooled(), torch.zeros(1, 3, 2, 2)).macs == 4 * 3 + 2 * 4 * 3


def test_one_image_is_counted_whatever_the_batch_of_the_example() -> None:
    model = SmallVGG()
    assert cost(model, torch.zeros(7, 3, 16, 16)) == cost(model, torch.zeros(1, 3, 16, 16))


def test_a_network_in_half_precision_costs_the_same() -> None:
    example = torch.zeros(1, 3, 16, 16)
    assert cost(SmallVGG().bfloat16(), example) == cost(SmallVGG(), example)


def test_counting_and_timing_leave_the_mode_and_the_state_alone() -> None:
    model = SmallVGG(stages=[[4]]).train()
    model.pool.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cost(model, torch.rand(1, 3, 8, 8))
    speed(model, torch.rand(1, 3, 8, 8), batch_size=2, seconds=0.01)
    assert model.training
    assert not model.pool.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_speed_says_what_was_timed_and_how() -> None:
    pace = speed(SmallVGG(stages=[[4]]).half(), torch.rand(5, 3, 8, 8), batch_size=3, seconds=0.05)
    assert 0 < pace.low <= pace.images_per_second <= pace.high
    assert pace.runs >= 1
    assert (pace.batch_size, pace.threads, pace.dtype, pace.device) == (3, torch.get_num_threads(), "float16", "cpu")


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_fast_path_of_torchs_attention_is_counted(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4),
        nn.Flatten(2),
        nn.Linear(4, 8),
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
    )
    layers = 8 * 48 * 4 + 8 * 4 * 8 + 2 * 8 * (4 * 8 * 8 + 2 * 8 * 12)  # 8 tokens, or 8 sequences of one token
    scores_and_values = 2 * 2 * 8 * (8 if batch_first else 1) * 8
    assert cost(model, torch.zeros(1, 3, 8, 8)).macs == layers + scores_and_values
    assert torch.backends.mha.get_fastpath_enabled()


class Waiting(nn.Module):
    """A network that has no processor for most of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.005)
        return self.layer(images)


def test_a_network_that_waits_for_a_processor_is_noticed() -> None:
    pace = speed(Waiting(), torch.zeros(1, 1), seconds=0.05)
    assert pace.processor_share is not None
    assert pace.processor_share < 0.5
    assert pace.is_disturbed


def test_a_slower_network_makes_fewer_images_a_second() -> None:
    image = torch.rand(1, 3, 32, 32)
    slow = speed(SmallVGG(stages=[[64, 64], [64, 64]]), image, batch_size=8, seconds=0.1)
    fast = speed(SmallVGG(stages=[[2]]), image, batch_size=8, seconds=0.1)
    assert slow.images_per_second < fast.images_per_second


class Nested(nn.Module):
    """A matrix product of its own, a layer that runs twice, and one whose weight another shares."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Linear(4, 4)
        self.inner = nn.Sequential(first, nn.ReLU())
        self.own, self.twin = nn.Parameter(torch.ones(4, 4)), nn.Linear(4, 4)
        self.twin.weight = first.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.twin(self.inner(self.inner(images.flatten(1)))) @ self.own


def test_the_costs_of_the_modules_add_up_to_the_whole() -> None:
    net, image = Nested(), torch.zeros(1, 1, 2, 2)
    found = cost_by_module(net, image)
    assert found == {
        "": Cost(16, 16), "inner": Cost(0, 0), "inner.0": Cost(20, 32), "inner.1": Cost(0, 0), "twin": Cost(4, 16)
    }  # fmt: skip
    whole = cost(net, image)
    assert whole == Cost(sum(each.parameters for each in found.values()), sum(each.macs for each in found.values()))
