"""Layers that run in training only are cut with what they read; those that run in no mode keep what they may read."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe import cost, prune, score
from prune_fe.errors import InputError
from prune_fe.pruning.records import Pruned
from prune_fe.tracing.branches import taking_training_branches

pytestmark = pytest.mark.filterwarnings("ignore:left out")

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def block(channels: int, units: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, units, 3, 2, 1, bias=False), nn.BatchNorm2d(units), nn.ReLU())


class Auxiliary(nn.Module):
    """A network with a second head that runs in training only, as GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = block(3, 8), block(8, 12), nn.Linear(12, 4)
        self.aux = nn.Sequential(block(8, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        logits = self.head(F.dropout(self.second(x), 0.5, self.training).mean((2, 3)))
        return (logits, self.aux(x)) if self.training else logits


class Counting(Auxiliary):
    """A head whose code mixes channels, which no rule sees in evaluation."""

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        logits = self.head(self.second(x).mean((2, 3)))
        if not self.training:
            return logits
        return logits, self.aux(x) * torch.as_tensor(x.detach().double().numpy().std(1).mean())


class Noisy(Auxiliary):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Identity()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        return self.head(self.second(x).mean((2, 3)))


class BySize(nn.Module):
    """A network that reads large images through another layer, and small ones not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = block(3, 8), block(8, 12), block(12, 10)
        self.extra, self.head = nn.Conv2d(12, 12, 3, padding=1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(x))
        if x.shape[-1] > 8:
            x = self.extra(x)
        return self.head(self.last(x).mean((2, 3)))


class LeftOver(BySize):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.middle(self.first(x))).mean((2, 3)))


class ByName(BySize):
    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(x))
        if x.shape[-1] > 8:
            x = getattr(self, "ex" + "tra")(x)
        return self.head(self.last(x).mean((2, 3)))


class Unused(Auxiliary):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Conv2d(5, 5, 1)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Any:
        return self.head(self.second(self.first(x)).mean((2, 3)))


def halved(model: nn.Module) -> Pruned:
    torch.manual_seed(1)
    return prune(model.eval(), score(model, scorer="l1-filter", example=X), 0.5, X)


def test_a_head_of_training_is_cut_with_the_layers_that_it_reads() -> None:
    model = Auxiliary()
    pruned = halved(model)
    assert [(step.layers, step.count, step.left) for step in pruned.steps] == [
        (("first.0",), 4, None),
        (("second.0",), 6, None),
    ]
    twin = pruned.model.train()
    logits, aux = twin(X)
    (logits.sum() + aux.sum()).backward()
    assert twin.get_parameter("aux.0.0.weight").shape == (6, 4, 3, 3)
    # What is left of the cost is that of evaluation.
    assert pruned.macs == pytest.approx(cost(pruned.model.eval(), X).macs / cost(model, X).macs, abs=0.02)


def test_the_outputs_of_training_are_those_of_the_masked_network() -> None:
    model = Auxiliary().eval()
    pruned = halved(model)
    removed = pruned.steps[0].removed["first.0"]
    with taking_training_branches(model), taking_training_branches(pruned.model), torch.no_grad():
        handle = model.first.register_forward_hook(
            lambda module, inputs, output: output.index_fill(1, torch.tensor(removed), 0)
        )
        try:
            _, expected = model(X)
        finally:
            handle.remove()
        assert torch.allclose(pruned.model(X)[1], expected, atol=1e-5)


def test_a_head_that_mixes_channels_keeps_them() -> None:
    steps = {step.layers[0]: step for step in halved(Counting()).steps}
    assert steps["first.0"].count == 0
    assert str(steps["first.0"].left).startswith("in training, removing its units is not masking them")
    assert steps["second.0"].count == 6


def test_noise_in_training_holds_nothing() -> None:
    assert [step.count for step in halved(Noisy()).steps] == [4, 6]


def test_a_layer_that_runs_in_no_mode_keeps_what_it_may_read() -> None:
    steps = {step.layers[0]: step for step in halved(BySize()).steps}
    assert {name: step.count for name, step in steps.items()} == {"first.0": 4, "middle.0": 0, "last.0": 5}
    assert steps["middle.0"].left == (
        "layer 'extra' may read them, but it does not run on the example, in evaluation or in training"
    )
    pruned = halved(BySize()).model
    assert pruned(torch.randn(1, 3, 64, 64)).shape == (1, 4), "the branch for large images runs"


def test_a_layer_that_fits_nothing_or_is_left_over_holds_nothing() -> None:
    assert [step.count for step in halved(Unused()).steps] == [4, 6]
    assert [step.count for step in halved(LeftOver()).steps] == [4, 6, 5]
    assert [step.count for step in halved(ByName()).steps] == [4, 0, 5]


def test_every_mode_is_as_before_and_dropout_is_off_for_the_block() -> None:
    model = Auxiliary().train()
    model.second.eval()
    modes = [module.training for module in model.modules()]
    with taking_training_branches(model):
        assert model.training
        assert not model.first[1].training
        assert torch.equal(F.dropout(X), X)
        assert torch.equal(F.dropout(X, 0.5, True), X)
        assert torch.equal(model(X)[0], model(X)[0])
    assert [module.training for module in model.modules()] == modes
    assert not torch.equal(F.dropout(X), X)


def test_a_network_that_cannot_run_in_training_is_followed_in_evaluation() -> None:
    class Detector(Auxiliary):
        def forward(self, x: Tensor, targets: Any = None) -> Any:
            if self.training and targets is None:
                raise ValueError("targets should not be none when in training mode")
            x = self.first(x)
            return self.aux(x) - targets if self.training else self.head(self.second(x).mean((2, 3)))

    # Its second head reads as many channels as the first block returns, and might be reached with targets.
    steps = {step.layers[0]: step for step in halved(Detector()).steps}
    assert steps["second.0"].count == 6
    assert "layer 'aux.0.0' may read them" in str(steps["first.0"].left)
    with pytest.raises(InputError, match="nothing could be pruned .*aux.0.0"):
        prune(Detector().eval(), score(Detector(), scorer="l1-filter", example=X), {"first.*": 0.5}, X)


def test_outputs_of_training_that_are_nan_hold_nothing() -> None:
    class LearntDropout(Auxiliary):
        def __init__(self) -> None:
            super().__init__()
            self.aux, self.rate = nn.Identity(), nn.Parameter(torch.tensor(0.1))  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Any:
            x = self.first(x)
            if self.training:  # With random weights the rate is larger than 1, and nothing is kept.
                kept = (torch.rand_like(x) > 3 * self.rate).to(x)
                x = x * kept * kept.numel() / kept.sum()
            return self.head(self.second(x).mean((2, 3)))

    assert [step.count for step in halved(LearntDropout()).steps] == [4, 6]


def test_a_parameter_that_nothing_reads_keeps_what_it_may_be_combined_with() -> None:
    class Scaling(BySize):
        def __init__(self) -> None:
            super().__init__()
            self.extra, self.scale = nn.Identity(), nn.Parameter(torch.rand(1, 8, 1, 1))  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            maps = self.first(x)
            return self.head(self.last(self.middle(maps * self.scale if x.shape[-1] > 16 else maps)).mean((2, 3)))

    pruned = halved(Scaling())
    assert [(step.layers[0], step.count) for step in pruned.steps] == [("first.0", 0), ("middle.0", 6), ("last.0", 5)]
    assert str(pruned.steps[0].left).startswith("parameter 'scale' may be combined with them")
    assert pruned.model(torch.randn(1, 3, 64, 64)).shape == (1, 4), "the branch for large images runs"

    class LeftOverScale(Scaling):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.last(self.middle(self.first(x))).mean((2, 3)))

    assert [step.count for step in halved(LeftOverScale()).steps] == [4, 6, 5]
