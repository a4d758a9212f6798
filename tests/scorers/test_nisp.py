"""NISP against explicit matrices, multiplied backwards by hand."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from prune_fe.errors import InputError
from prune_fe.scorers.nisp import NISP
from prune_fe.scoring.score import score
from tests.scorers.test_infinite_feature_selection import inf_fs, scaled_inf_fs

Array = NDArray[Any]


def test_sigma_is_a_setting_of_the_scorer() -> None:
    net = head_after(lambda net, x: x)
    with torch.no_grad():
        responses = torch.relu(net.conv(DATA[0][0])).mean((2, 3)).double().numpy()
    keep = score(net, DATA, NISP(sigma="minmax"), layers=["conv"]).keep["conv"]
    np.testing.assert_allclose(keep, scaled_inf_fs(responses, 0.5), rtol=1e-5)


# The matrix of each layer, acting on flattened maps. All loops: no code is shared with what is tested.


def of_conv(conv: nn.Conv2d, height: int, width: int) -> tuple[Array, int, int]:
    """(|W| unrolled, output height, output width)."""
    weight = conv.weight.detach().abs().numpy()
    units, per_group, rows, columns = weight.shape
    (sy, sx), (py, px) = conv.stride, (int(p) for p in conv.padding)
    high, wide = (height + 2 * py - rows) // sy + 1, (width + 2 * px - columns) // sx + 1
    matrix = np.zeros((units, high, wide, conv.in_channels, height, width))
    for u in range(units):
        first = u // (units // conv.groups) * per_group
        for y, x, c, ky, kx in np.ndindex(high, wide, per_group, rows, columns):
            iy, ix = y * sy + ky - py, x * sx + kx - px
            if 0 <= iy < height and 0 <= ix < width:
                matrix[u, y, x, first + c, iy, ix] = weight[u, c, ky, kx]
    return matrix.reshape(units * high * wide, -1), high, wide


def of_norm(norm: nn.BatchNorm2d, pixels: int) -> Array:
    """|γ| / √(var + ε) on the diagonal."""
    assert norm.running_var is not None
    scale = norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
    return np.diag(np.repeat(scale.numpy(), pixels))


def of_pool(channels: int, height: int, width: int, size: int, stride: int, padding: int = 0) -> Array:
    """Each value of a window gets an equal share."""
    high, wide = (height + 2 * padding - size) // stride + 1, (width + 2 * padding - size) // stride + 1
    matrix = np.zeros((channels, high, wide, channels, height, width))
    for c, y, x in np.ndindex(channels, high, wide):
        rows = [y * stride + k - padding for k in range(size) if 0 <= y * stride + k - padding < height]
        columns = [x * stride + k - padding for k in range(size) if 0 <= x * stride + k - padding < width]
        for row in rows:
            for column in columns:
                matrix[c, y, x, c, row, column] = 1 / (len(rows) * len(columns))
    return matrix.reshape(channels * high * wide, -1)


def of_average(channels: int, pixels: int) -> Array:
    return np.kron(np.eye(channels), np.full((1, pixels), 1 / pixels))


def summed(scores: Array, units: int) -> Array:
    """A channel's score is the sum over its positions."""
    return scores.reshape(units, -1).sum(axis=1)


def lively(net: nn.Module) -> Any:
    """Norms as if trained, with scales of both signs; float64."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.double().eval()


class SmallVGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.norm2 = nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)
        self.depthwise = nn.Conv2d(4, 8, (1, 2), groups=4)
        self.hidden, self.head = nn.Linear(16, 5), nn.Linear(5, 3)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout()

    def responses(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.relu(self.norm1(self.first(x))), 3, 2, 1)
        x = F.gelu(self.norm2(self.second(x)))
        x = F.max_pool2d(self.depthwise(x), 2, 1)
        return self.drop(torch.tanh(self.hidden(torch.flatten(x, 1))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.responses(x))


def test_a_small_vgg_is_the_product_of_its_matrices() -> None:
    net, images = lively(SmallVGG()), torch.randn(12, 2, 14, 14).double()
    final = inf_fs(net.responses(images).detach().numpy())
    # 14 -> 14 -> pool 7 -> 3 -> (3, 2) -> pool (2, 1)
    second, high, wide = of_conv(net.second, 7, 7)
    depthwise, rows, columns = of_conv(net.depthwise, high, wide)
    assert (high, wide, rows, columns) == (3, 3, 3, 2)
    s_pooled = net.hidden.weight.detach().abs().numpy().T @ final
    s_depthwise = of_pool(8, 3, 2, 2, 1).T @ s_pooled
    s_second = depthwise.T @ s_depthwise
    s_first = of_pool(3, 14, 14, 3, 2, 1).T @ second.T @ of_norm(net.norm2, 9) @ s_second
    keep = score(net, [(images, torch.arange(12) % 3)], "nisp").keep
    np.testing.assert_allclose(keep["depthwise"], summed(s_depthwise, 8), rtol=1e-9)
    np.testing.assert_allclose(keep["second"], summed(s_second, 4), rtol=1e-9)
    np.testing.assert_allclose(keep["first"], summed(s_first, 3), rtol=1e-9)


def of_map(function: Callable[[Tensor], Tensor], *shape: int) -> Array:
    """The matrix of a linear function of maps of this shape, from what it makes of each unit vector."""
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    return function(basis).flatten(1).numpy().T


def absolute(module: Any) -> nn.Module:
    """A copy with the absolute values of its weights, without a bias."""
    twin = copy.deepcopy(module).double().requires_grad_(False)
    twin.weight.abs_()
    twin.bias.zero_()
    return twin


class Kinds(nn.Module):
    """Convolutions over one and three dimensions, transposed ones with groups, and hidden linear layers on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.cube, self.line = nn.Conv3d(1, 4, (1, 3, 3)), nn.Conv1d(4, 6, 3, stride=2)
        self.up = nn.ConvTranspose2d(6, 4, (1, 2), stride=(1, 2), groups=2)
        self.token, self.hidden, self.head = nn.Linear(4, 5), nn.Linear(50, 7), nn.Linear(7, 3)

    def responses(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(torch.relu(self.cube(x[:, None])), (1, 2, 2))  # (images, 4, 2, 3, 3)
        x = torch.relu(self.line(x.flatten(2)[:, :, :13]))  # (images, 6, 6)
        x = F.max_pool1d(x, 2, padding=1)[:, :, None]  # (images, 6, 1, 4)
        x = F.gelu(self.up(x))[..., :5].flatten(2).transpose(1, 2)  # (images, 5 tokens, 4)
        x = torch.cat([F.silu(self.token(x))] * 2, 1)
        return torch.relu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.responses(x))


def test_convolutions_of_every_kind_and_hidden_linear_layers_are_the_products_of_their_matrices() -> None:
    torch.manual_seed(0)
    net, images = Kinds().double(), torch.randn(12, 2, 8, 8).double()
    final = inf_fs(net.responses(images).detach().numpy())
    s_token = of_map(absolute(net.hidden), 50).T @ final
    s_token = s_token.reshape(2, 5, 5).sum(axis=0)  # both copies of the five tokens
    s_up = of_map(absolute(net.token), 4).T @ s_token.T  # (4 units, 5 tokens)
    s_up = np.hstack([s_up, np.zeros((4, 3))])
    s_pooled = of_map(absolute(net.up), 6, 1, 4).T @ s_up.reshape(-1)
    s_line = of_map(lambda x: F.avg_pool1d(x, 2, padding=1, count_include_pad=False), 6, 6).T @ s_pooled
    s_flat = (of_map(absolute(net.line), 4, 13).T @ s_line).reshape(4, 13)
    s_flat = np.hstack([s_flat, np.zeros((4, 5))]).reshape(-1)
    s_cube = of_map(lambda x: F.avg_pool3d(x, (1, 2, 2)), 4, 2, 6, 6).T @ s_flat
    keep = score(net, [(images, torch.arange(12) % 3)], "nisp", linear=True).keep
    assert list(keep) == ["cube", "line", "up", "token", "hidden", "head"]
    np.testing.assert_allclose(keep["hidden"], final, rtol=1e-9)
    np.testing.assert_allclose(keep["token"], s_token.sum(axis=0), rtol=1e-9)
    np.testing.assert_allclose(keep["up"], summed(s_up, 4), rtol=1e-9)
    np.testing.assert_allclose(keep["line"], summed(s_line, 6), rtol=1e-9)
    np.testing.assert_allclose(keep["cube"], summed(s_cube, 4), rtol=1e-9)
    assert keep["head"].tolist() == [0, 0, 0]


def test_the_runs_of_a_layer_add_up() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.conv(torch.relu(self.conv(x)))).mean((2, 3)))

    net, images = Repeated().double(), torch.randn(9, 3, 4, 4).double()
    final = inf_fs(torch.relu(net.conv(torch.relu(net.conv(images)))).mean((2, 3)).detach().numpy())
    keep = score(net, [(images, torch.arange(9) % 2)], "nisp", layers=["conv"]).keep["conv"]
    weight = net.conv.weight.detach().abs().numpy()[..., 0, 0]
    np.testing.assert_allclose(keep, final + weight.T @ final, rtol=1e-9)


class SmallResNet(nn.Module):
    """A block on the identity, added in place, and a block with a convolution on the way around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.a1, self.n1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b1, self.m1 = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.a2, self.n2 = nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5)
        self.b2, self.m2 = nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.down, self.norm = nn.Conv2d(3, 6, 1, stride=2), nn.BatchNorm2d(6)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(6, 3)

    def responses(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        out = self.m1(self.b1(self.relu(self.n1(self.a1(x)))))
        out += x
        x = self.relu(out)
        out = self.m2(self.b2(self.relu(self.n2(self.a2(x)))))
        out = self.relu(out + self.norm(self.down(x)))
        return F.adaptive_avg_pool2d(out, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.responses(x))


def test_a_small_resnet_sums_the_scores_of_both_ways() -> None:
    net, images = lively(SmallResNet()), torch.randn(12, 2, 6, 6).double()
    final = inf_fs(net.responses(images).detach().numpy())
    a1, b1 = of_conv(net.a1, 6, 6)[0], of_conv(net.b1, 6, 6)[0]
    a2, b2, down = of_conv(net.a2, 6, 6)[0], of_conv(net.b2, 3, 3)[0], of_conv(net.down, 6, 6)[0]
    s = {"b2": of_average(6, 9).T @ final}
    s["down"] = s["b2"]
    s["a2"] = b2.T @ of_norm(net.m2, 9) @ s["b2"]
    s["b1"] = a2.T @ of_norm(net.n2, 9) @ s["a2"] + down.T @ of_norm(net.norm, 9) @ s["down"]
    s["a1"] = b1.T @ of_norm(net.m1, 36) @ s["b1"]
    s["stem"] = s["b1"] + a1.T @ of_norm(net.n1, 36) @ s["a1"]
    keep = score(net, [(images, torch.arange(12) % 3)], "nisp").keep
    assert set(keep) == set(s)
    for name, scores in s.items():
        np.testing.assert_allclose(keep[name], summed(scores, len(keep[name])), rtol=1e-9, err_msg=name)


class SmallDenseNet(nn.Module):
    """Norm and activation before the convolution, features concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1)
        self.norm1, self.first = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)
        self.norm2, self.second = nn.BatchNorm2d(7), nn.Conv2d(7, 2, 1)
        self.norm, self.head = nn.BatchNorm2d(9), nn.Linear(9, 3)

    def responses(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.first(torch.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.second(torch.relu(self.norm2(F.avg_pool2d(x, 1))))], 1)
        return torch.relu(self.norm(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.responses(x))


def test_a_small_densenet_sums_the_scores_of_all_readers() -> None:
    net, images = lively(SmallDenseNet()), torch.randn(12, 2, 4, 4).double()
    final = inf_fs(net.responses(images).detach().numpy())
    first, second = of_conv(net.first, 4, 4)[0], of_conv(net.second, 4, 4)[0]
    s_all = of_norm(net.norm, 16) @ of_average(9, 16).T @ final
    s_second = s_all[7 * 16 :]
    s_both = s_all[: 7 * 16] + of_norm(net.norm2, 16) @ second.T @ s_second
    s_first = s_both[3 * 16 :]
    s_stem = s_both[: 3 * 16] + of_norm(net.norm1, 16) @ first.T @ s_first
    keep = score(net, [(images, torch.arange(12) % 3)], "nisp").keep
    for name, scores in {"stem": s_stem, "first": s_first, "second": s_second}.items():
        np.testing.assert_allclose(keep[name], summed(scores, len(keep[name])), rtol=1e-9, err_msg=name)


def cut_down_vgg() -> nn.Module:
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(7), nn.Flatten(), classifier)


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: torchvision.models.resnet34(num_classes=10), 32),
        (lambda: torchvision.models.densenet121(num_classes=10), 32),
        (cut_down_vgg, 32),
    ],
    ids=["resnet34", "densenet121", "vgg16_bn"],
)
def test_known_networks_have_a_positive_score_at_every_unit(build: Callable[[], nn.Module], size: int) -> None:
    net = build()
    keep = score(net, [(torch.randn(6, 3, size, size), torch.arange(6))], "nisp").keep
    assert len(keep) == sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert all(np.isfinite(scores).all() and (scores > 0).all() for scores in keep.values())


def head_after(middle: Callable[[Any, Tensor], Tensor]) -> Any:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
            self.scale, self.norm = nn.Parameter(torch.ones(4, 1, 1)), nn.GroupNorm(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(middle(self, torch.relu(self.conv(x))).mean((2, 3)))

    return Net()


DATA = [(torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2)]


@pytest.mark.parametrize(
    ("middle", "what"),
    [
        (lambda net, x: x * torch.sigmoid(net.gate(F.adaptive_avg_pool2d(x, 1))), "a product of two maps"),
        (lambda net, x: x * net.scale, "a product of two maps"),
        (lambda net, x: net.norm(x), "group_norm"),
        (lambda net, x: x.softmax(1), "softmax"),
        (lambda net, x: F.layer_norm(x + 1, x.shape[1:]), "layer_norm"),
        (lambda net, x: x @ x.transpose(2, 3), "matmul"),
        (lambda net, x: x - x.mean((2, 3), keepdim=True), "a difference of maps"),
        (lambda net, x: F.max_pool2d(x, 2, dilation=2), "a dilated max pooling"),
        (lambda net, x: F.adaptive_max_pool2d(x, 2, return_indices=True)[0], "adaptive_max_pool2d_with_indices"),
        (lambda net, x: F.batch_norm(x, None, None, training=True), "a batch norm without running statistics"),
    ],
    ids=[
        "squeeze-excite",
        "scale",
        "group-norm",
        "softmax",
        "layer-norm",
        "attention",
        "difference",
        "dilated",
        "indices",
        "batch-statistics",
    ],
)
def test_what_has_no_reading_is_refused_by_name_before_images_are_read(middle: Any, what: str) -> None:
    with pytest.raises(InputError, match=f"^nisp cannot propagate scores through {what}"):
        score(head_after(middle), Unreadable(), "nisp", layers=["conv"], example=DATA[0][0][:1])


def test_modules_that_refuse_float64_are_an_error_with_the_reason() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gru, self.last = nn.Conv2d(3, 4, 3), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.gru(self.conv(x).mean(2).transpose(1, 2))[0][:, -1])

    images = TensorDataset(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(InputError, match="^nisp cannot propagate scores: Recurrent does not run in float64 .ValueErr"):
        score(Recurrent(), images, "nisp", example=images.tensors[0][:1])


@pytest.mark.parametrize(
    ("middle", "factor"),
    [
        (lambda net, x: x * -2, 2.0),
        (lambda net, x: x.mul_(-2) is None or x, 2.0),
        (lambda net, x: x / -4, 0.25),
        (lambda net, x: x - 0.5, 1.0),
        (lambda net, x: torch.clip(x, min=0.0), 1.0),
        (lambda net, x: torch.max_pool2d(x, 2), 1.0),
        (lambda net, x: x.amax((2, 3), keepdim=True), 1.0),
        (lambda net, x: F.adaptive_max_pool2d(x, 2), 1.0),
        (lambda net, x: F.max_pool2d(F.dropout(x, 0.3, net.training), 2), 1.0),
    ],
    ids=["factor", "in-place", "divisor", "constant", "clip", "max", "amax", "adaptive-max", "dropout"],
)
def test_what_is_linear_is_read_as_such(middle: Any, factor: float) -> None:
    # The mean over the positions behind it makes each unit's score that of its response.
    net = head_after(middle)
    with torch.no_grad():
        responses = middle(net.eval(), torch.relu(net.conv(DATA[0][0]))).mean((2, 3))
    expected = factor * inf_fs(responses.double().numpy())
    np.testing.assert_allclose(score(net, DATA, "nisp", layers=["conv"]).keep["conv"], expected, rtol=1e-6)


def test_what_the_network_does_with_its_responses_plays_no_part() -> None:
    class Log(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return F.log_softmax(self.net(x), dim=1)

    net = head_after(lambda net, x: x)
    whole = score(Log(net), DATA, "nisp", layers=["net.conv"]).keep["net.conv"]
    plain = score(net, DATA, "nisp", layers=["conv"]).keep["conv"]
    np.testing.assert_array_equal(whole, plain)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(off: Any) -> None:
    net = head_after(lambda net, x: x)
    expected = score(net, DATA, "nisp", layers=["conv"]).keep["conv"]
    with off():
        images = DATA[0][0].clone()
        found = score(net, [(images, DATA[0][1])], "nisp", layers=["conv"]).keep["conv"]
    np.testing.assert_array_equal(found, expected)


def test_a_classifier_that_is_called_by_keyword_is_found() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=torch.relu(self.conv(x)).mean((2, 3)))

    assert (score(Keyword(), DATA, "nisp").keep["conv"] > 0).any()


def test_too_many_features_are_refused_before_any_image_is_read() -> None:
    with pytest.raises(InputError, match=r"layer 'head' reads 4 features, .* at most 3 are allowed \(setting feat"):
        score(head_after(lambda net, x: x), Unreadable(), NISP(features=3), layers=["conv"], example=DATA[0][0][:1])


def test_features_of_several_positions_are_responses_too() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 7), nn.Linear(3, 2)

        def responses(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x)).flatten(2).transpose(1, 2)  # (images, positions, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.responses(x)).mean(1)

    net = Tokens().double()
    images = DATA[0][0].double()
    final = inf_fs(net.responses(images).flatten(1).detach().numpy()).reshape(4, 3)
    keep = score(net, [(images, DATA[0][1])], "nisp").keep["conv"]
    np.testing.assert_allclose(keep, final.sum(axis=0), rtol=1e-9)


def test_maps_that_cannot_reach_the_responses_are_refused() -> None:
    net = head_after(lambda net, x: x.detach())
    with pytest.raises(InputError, match="the maps of no layer reach the final responses"):
        score(net, DATA, "nisp", layers=["conv"])


def test_a_network_that_does_not_end_in_a_linear_classifier_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="what a linear classifier reads .*; layer '2' is a Conv2d"):
        score(net, DATA, "nisp")


class Unreadable(Dataset[Any]):
    """Six images; reading one fails."""

    classes, targets = ("cat", "dog"), (0, 1, 0, 1, 0, 1)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("an image was read")


def test_more_images_than_rows_are_refused_before_any_is_read_where_their_number_is_known() -> None:
    net = head_after(lambda net, x: x)
    with pytest.raises(InputError, match="nisp keeps a row for each image, at most 5, and there are 6; score on fewer"):
        score(net, Unreadable(), NISP(rows=5), layers=["conv"], example=DATA[0][0][:1])
    with pytest.raises(InputError, match="nisp compares the responses to several images, there is 1"):
        score(net, Unreadable(), NISP(), layers=["conv"], classes=[0, 1][:1], samples=1, example=DATA[0][0][:1])


def test_where_their_number_is_not_known_rows_bound_the_memory() -> None:
    net, (images, labels) = head_after(lambda net, x: x), DATA[0]
    assert score(net, DATA, NISP(rows=6), layers=["conv"]).images == 6
    batches = [(images[i : i + 1], labels[i : i + 1]) for i in range(6)]
    for rows, data in ((5, DATA), (4, batches)):
        with pytest.raises(InputError, match=f"leaves a row, at most {rows} are kept \\(setting rows\\); take fewer"):
            score(net, data, NISP(rows=rows), layers=["conv"])
    with pytest.raises(InputError, match="compares the responses to several images, there was 1"):
        score(net, batches[:1], NISP(), layers=["conv"])


def wrong_settings() -> Iterator[tuple[dict[str, Any], str]]:
    for alpha in (-0.1, 1.1, "half", float("nan")):
        yield {"alpha": alpha}, f"nisp: alpha is {alpha!r}, allowed are numbers from 0 to 1"
    for r in (0, -1.0, "big"):
        yield {"r": r}, f"nisp: r is {r!r}, allowed are positive numbers, or none"
    for r in (float("inf"), True):
        yield {"r": r}, f"nisp: r is {r!r}, allowed are positive numbers"
    yield {"sigma": "scaled"}, "nisp: sigma is 'scaled', allowed are raw, minmax"
    yield {"alpha": True}, "nisp: alpha is True, allowed are numbers from 0 to 1"
    for rows in (1, 2.5, None, True):
        yield {"rows": rows}, f"nisp: rows is {rows!r}, allowed are whole numbers from 2"


@pytest.mark.parametrize(("setting", "message"), list(wrong_settings()))
def test_wrong_settings_say_what_is_allowed(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NISP(**setting)


def by_the_paper_with_pruning(net: nn.Sequential, responses: Array, ratio: float) -> dict[str, Array]:
    """Scores of the units of a network of linear layers, each pruned before the scores are propagated further."""
    found: dict[str, Array] = {}
    scores = inf_fs(responses)
    layers = [(name, module) for name, module in net.named_children() if isinstance(module, nn.Conv2d)]
    for name, layer in reversed(layers):
        found[name] = scores
        # s_k = |W_{k+1}|ᵀ (s*_{k+1} s_{k+1}): the prune indicator s* is 0 for the lowest scores.
        order = sorted(range(len(scores)), key=lambda unit: scores[unit])
        removed = order[: len(scores) - math.floor((1 - ratio) * len(scores))]
        indicator = np.array([unit not in removed for unit in range(len(scores))], float)
        scores = layer.weight.detach().abs().numpy()[..., 0, 0].T @ (indicator * scores)
    return found


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_pruned_units_pass_no_score_on(ratio: float) -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 4, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(4, 3),
    ).double()  # fmt: skip
    images = torch.randn(15, 2, 1, 1).double()
    expected = by_the_paper_with_pruning(net, net[:7](images).detach().numpy(), ratio)
    data = [(images, torch.arange(15) % 3)]
    keep = score(net, data, NISP(ratio=ratio)).keep
    for name, scores in expected.items():
        np.testing.assert_allclose(keep[name], scores, rtol=1e-9, err_msg=name)
    every = score(net, data, NISP()).keep
    assert every["4"].tolist() == keep["4"].tolist()
    assert (every["2"] > keep["2"]).all()


def masked(scores: Array, units: int, ratio: float) -> Array:
    """The scores of maps with zeros at the units that are pruned."""
    sums = summed(scores, units)
    indicator = np.ones(units)
    indicator[np.argsort(sums, kind="stable")[: units - math.floor((1 - ratio) * units)]] = 0
    return scores * np.repeat(indicator, len(scores) // units)


def test_channels_of_a_small_vgg_pass_nothing_on_at_any_position() -> None:
    net, images = lively(SmallVGG()), torch.randn(12, 2, 14, 14).double()
    final = inf_fs(net.responses(images).detach().numpy())
    second, _, _ = of_conv(net.second, 7, 7)
    depthwise, _, _ = of_conv(net.depthwise, 3, 3)
    s_depthwise = of_pool(8, 3, 2, 2, 1).T @ net.hidden.weight.detach().abs().numpy().T @ final
    s_second = depthwise.T @ masked(s_depthwise, 8, 0.5)
    s_first = of_pool(3, 14, 14, 3, 2, 1).T @ second.T @ of_norm(net.norm2, 9) @ masked(s_second, 4, 0.5)
    keep = score(net, [(images, torch.arange(12) % 3)], NISP(ratio=0.5)).keep
    np.testing.assert_allclose(keep["depthwise"], summed(s_depthwise, 8), rtol=1e-9)
    np.testing.assert_allclose(keep["second"], summed(s_second, 4), rtol=1e-9)
    np.testing.assert_allclose(keep["first"], summed(s_first, 3), rtol=1e-9)


def test_a_ratio_that_cannot_be_used_is_refused() -> None:
    for ratio in (-0.1, 1, True, float("nan"), "half"):
        with pytest.raises(InputError, match=f"nisp: ratio is {ratio!r}, allowed are numbers from 0, below 1"):
            NISP(ratio=ratio)  # type: ignore[arg-type]

    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.conv(x)).mean((2, 3)))

    with pytest.raises(InputError, match="nisp: layer 'conv' runs several times, .* leave it out, or ratio"):
        score(Repeated(), DATA, NISP(ratio=0.5))
