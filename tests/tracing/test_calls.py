"""What a network calls is recorded, to tell whether it does the same on another input."""

import torch
from torch import Tensor, nn

from prune_fe.tracing.calls import CallRecorder


class TwoWays(nn.Module):
    """Large images are pooled; the convolution calls a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        if x.shape[-1] > 4:
            x = nn.functional.max_pool2d(x, 2)
        return x.mean((2, 3))


def calls(model: nn.Module, side: int) -> list[str]:
    recorder = CallRecorder({"conv"})
    with recorder.recording(model):
        model(torch.zeros(1, 1, side, side))
    return recorder.calls[1:]  # the first makes the image


def test_modules_that_are_handled_as_a_whole_are_one_call_and_questions_are_none() -> None:
    assert calls(TwoWays(), 4) == ["conv", "relu", "mean"]
    assert calls(TwoWays(), 8) == ["conv", "relu", "max_pool2d", "mean"]


def test_a_module_inside_another_one_belongs_to_it() -> None:
    recorder, model = CallRecorder({"", "conv"}), TwoWays()
    with recorder.recording(model):
        model(torch.zeros(1, 1, 4, 4))
    assert recorder.calls[1:] == [""]
    assert recorder.whole_running == 0


def test_nothing_is_left_behind() -> None:
    model = TwoWays()
    calls(model, 4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
