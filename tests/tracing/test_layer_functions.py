"""What becomes of channels in functions that compute what a layer computes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import ops

from prune_fe.tracing.channel_ids import ids_along
from tests.tracing.networks import Net, X, cut_every_second
from tests.tracing.test_function_rules import follow


def test_the_halves_of_a_gated_linear_unit_go_together() -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GLU(1), nn.Conv2d(6, 2, 1))
    groups, cut, difference = cut_every_second(model, X, ["0"])
    assert groups[0].layer_units["0"] == tuple((unit, unit + 6) for unit in range(6))
    assert difference < 1e-12
    assert (cut[0].out_channels, cut[2].in_channels) == (6, 3)
    # Halves of the rows of each map have the same channels.
    builder, output = follow(F.glu, 2)
    assert ids_along(builder.ids[output], [1]).tolist() == [1, 2, 3, 4, 5, 6]
    assert len(set(builder.build(1).coupled_set)) == 7


def test_a_depthwise_convolution_that_is_called_as_a_function_may_be_transposed() -> None:
    class Upsampled(Net):
        kernel: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kernel", torch.ones(8, 1, 2, 2))
            self.last = nn.Conv2d(8, 8, 1)

        def body(self, x: Tensor) -> Tensor:
            return self.last(F.conv_transpose2d(x, self.kernel, stride=2, groups=x.shape[1]))

    groups, cut, difference = cut_every_second(Upsampled(), X, ["stem", "last"])
    assert [(group.layers, group.reason) for group in groups] == [(("stem",), None), (("last",), None)]
    assert difference < 1e-12
    assert cut.kernel.shape == (4, 1, 2, 2)


@pytest.mark.parametrize("pool", [ops.roi_align, ops.roi_pool])
def test_pooled_regions_have_the_channels_of_their_maps(pool: object) -> None:
    class Detector(Net):
        """Reads two regions of each map."""

        def __init__(self) -> None:
            super().__init__(8 * 4)

        def forward(self, x: Tensor) -> Tensor:
            boxes = torch.tensor([[0, 1, 2, 9, 9], [1, 3, 3, 12, 14]], dtype=x.dtype)
            return self.head(pool(self.stem(x).tanh(), boxes, 2).flatten(1))  # type: ignore[operator]

    groups, cut, difference = cut_every_second(Detector(), X, ["stem"])
    assert [(group.layers, group.reason) for group in groups] == [(("stem",), None)]
    assert difference < 1e-12
    assert cut.head.in_features == 16
