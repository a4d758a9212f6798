"""What a network costs, against torch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prune_fe import build, cost, speed
from prune_fe.models.small_vgg import SmallVGG


def counted(model: nn.Module, example: torch.Tensor) -> int:
    """Multiply-adds as torch's dispatcher sees them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(example)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "densenet121", "resnext50_32x4d", "timm/vit_tiny_patch16_224"]
)
def test_the_multiply_adds_are_those_of_torchs_counter(name: str) -> None:
    model, image = build(name, 1000), torch.zeros(1, 3, 224, 224)
    assert cost(model, image).macs == counted(model, image)


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


def test_a_slower_network_makes_fewer_images_a_second() -> None:
    image = torch.rand(1, 3, 32, 32)
    slow = speed(SmallVGG(stages=[[64, 64], [64, 64]]), image, batch_size=8, seconds=0.1)
    fast = speed(SmallVGG(stages=[[2]]), image, batch_size=8, seconds=0.1)
    assert slow.images_per_second < fast.images_per_second
