"""APoZ against equation 1 of Hu et al. 2016, written as loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.errors import InputError
from prune_fe.scorers import apoz
from prune_fe.scorers.apoz import APoZ
from prune_fe.scorers.base import LayerScore
from prune_fe.scoring.score import score


def scored(maps: Tensor, labels: Tensor, classes: int) -> LayerScore:
    sums: Any = APoZ().measure(maps, labels, classes)
    return APoZ().score_layer(sums)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_it_is_the_share_of_zeros_behind_the_relu(awkward_maps: Callable[[int], Any], seed: int) -> None:
    maps, labels, classes = awkward_maps(seed)
    result = scored(maps, labels, classes)
    for unit in range(maps.shape[1]):
        behind = [max(value, 0) for image in maps for row in image[unit].tolist() for value in row]
        assert result.raw["zero_share"][unit].item() == sum(value == 0 for value in behind) / len(behind)
    assert result.keep.equal(-result.raw["zero_share"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_counts_in_chunks(dtype: torch.dtype, memory_format: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.randn(7, 5, 6, 6).round().to(dtype).to(memory_format=memory_format)
    expected = (maps <= 0).sum(dim=(0, 2, 3))
    for elements in (1, 400, 1 << 20):  # one image, two images, all
        monkeypatch.setattr(apoz, "CHUNK_ELEMENTS", elements)
        sums: Any = APoZ().measure(maps, torch.zeros(7, dtype=torch.int64), 1)
        assert sums["zeros"].tolist() == expected.tolist()
        assert sums["values"].item() == 7 * 36


def test_a_map_of_more_elements_than_float32_can_count() -> None:
    maps = torch.ones(1, 1, 4097, 4098)
    maps[0, 0, 0, 0] = 0
    sums: Any = APoZ().measure(maps, torch.tensor([0]), 1)
    assert sums["zeros"].tolist() == [1]


def test_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 0.0], [0.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]],
                         [[[4.0, 0.0], [0.5, 2.0]], [[0.0, 0.0], [0.0, 0.0]]]])  # fmt: skip
    result = scored(maps, torch.tensor([0, 0]), 1)
    assert result.keep.tolist() == [-3 / 8, -1]


def test_what_is_not_finite_is_no_active_value() -> None:
    maps = torch.ones(2, 3, 2, 2)
    maps[1, 2, 0, 1] = torch.nan
    with pytest.raises(InputError, match="unit 2: the map of image 1 of the batch holds NaN or infinite values"):
        APoZ().measure(maps, torch.tensor([0, 0]), 1)


def test_wrong_settings_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match="scorer 'apoz' has no setting 'p'; it has read"):
        APoZ.with_settings("apoz", {"p": 2})
    with pytest.raises(InputError, match="apoz: read is 'output', allowed are map, before_norm"):
        APoZ(read="output")  # type: ignore[arg-type]


def test_before_the_norm_it_is_what_nni_computes() -> None:
    # A hook on the convolution, its `activation='relu'`, and the share of values that are not 0.
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    nn.init.uniform_(net[1].weight, -2, 2)  # type: ignore[arg-type]
    nn.init.uniform_(net[1].bias, -1, 1)  # type: ignore[arg-type]
    images, outputs = torch.randn(9, 2, 6, 6), list[Tensor]()
    hook = net[0].register_forward_hook(lambda module, inputs, output: outputs.append(F.relu(output.detach())))
    net.eval()(images)
    hook.remove()
    scores = score(net, [(images, torch.arange(9) % 3)], APoZ(read="before_norm"))
    np.testing.assert_allclose(1 + scores.keep["0"], (outputs[0] != 0).double().mean((0, 2, 3)), rtol=1e-12)
    assert not np.allclose(scores.keep["0"], score(net, [(images, torch.arange(9) % 3)], APoZ()).keep["0"])
