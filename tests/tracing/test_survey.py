"""What a survey records of the runs of modules."""

import torch
from torch import Tensor, nn

from prune_fe.tracing.survey import survey


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.gate = nn.Conv2d(4, 4, 1)
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.conv(x)))
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


def test_a_survey_records_stages_uses_norms_and_gates() -> None:
    model = Net()
    watched = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    found = survey(model, torch.randn(2, 1, 6, 6), watched)
    assert list(found.runs) == ["conv", "gate"]
    ((run,), _) = found.runs.values()
    assert [function.__name__ for function in run.functions] == ["batch_norm", "relu_"]
    assert run.shapes == [torch.Size([2, 4, 6, 6])] * 3
    assert (run.uses, run.steps) == ({0: 1, 1: 1, 2: 2}, 2)  # the map goes into the mean and into the product
    assert found.gates == {"gate"}
    assert found.norm_of == {"conv": "norm"}
    assert model.training


def test_every_run_of_a_module_has_its_own_stages() -> None:
    conv = nn.Conv2d(1, 1, 3)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    found = survey(model, torch.randn(1, 1, 9, 9), {"0": conv})
    assert [run.steps for run in found.runs["0"]] == [1, 0]
