"""The batch norm over processes is torch's where there is one; tests/training/test_parallel.py has several."""

import pytest
import torch
from torch import Tensor, distributed, nn

from prune_fe.training.sync_batchnorm import SyncBatchNorms


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4, 4)])
def test_one_process_normalises_as_torch_does(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], affine: bool
) -> None:
    reduced: list[Tensor] = []
    monkeypatch.setattr(distributed, "all_reduce", reduced.append)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    norms = [kind(3, affine=affine) for _ in range(2)]
    torch.manual_seed(0)
    images, weights = 100 + torch.randn(shape), torch.randn(shape)
    results = []
    for norm, mode in zip(norms, (torch.no_grad, SyncBatchNorms), strict=True):
        inputs = images.clone().requires_grad_()
        with SyncBatchNorms() if mode is SyncBatchNorms else torch.enable_grad():
            output = norm(inputs)
        (output * weights).sum().backward()
        gradients = [weight.grad for weight in norm.parameters()]
        results.append([output, inputs.grad, norm.running_mean, norm.running_var, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert len(reduced) == 5  # count, mean and variance; the gradients of the last two
    with SyncBatchNorms():
        norms[0].eval()(images)
    assert len(reduced) == 5  # In evaluation nothing is sent.


def test_images_that_do_not_count_change_nothing_but_their_own_output(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Tensor] = []
    monkeypatch.setattr(distributed, "all_reduce", lambda value: sent.append(value.clone()))
    norms = SyncBatchNorms()
    norms.counts = norms.all_count = False
    with norms, torch.no_grad():
        nn.BatchNorm2d(3)(torch.randn(1, 3, 4, 4))
    assert [float(value.abs().sum()) for value in sent[:1]] == [0.0]
