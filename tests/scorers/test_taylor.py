"""Taylor against gates that the tested network really has."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.errors import InputError
from prune_fe.scorers.base import Scorer
from prune_fe.scorers.taylor import Square, Taylor
from prune_fe.scoring.score import score, score_all

CLASSES = 3
UNITS = {"stem": 4, "inner": 5, "outer": 4, "single": 1}


class Gated(nn.Module):
    """A ReLU in place, a residual sum in place, a dead unit and a layer of one unit. gates: layer -> (units,)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.outer = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.single, self.head = nn.Conv2d(4, 1, 1), nn.Linear(36, CLASSES)
        self.relu = nn.ReLU(inplace=True)
        with torch.no_grad():
            self.norm.weight[2], self.norm.bias[2] = 0, -1

    def forward(self, x: Tensor, gates: dict[str, Tensor] | None = None) -> Tensor:
        def gate(name: str, maps: Tensor) -> Tensor:
            return maps if gates is None else maps * gates[name][:, None, None]

        x = gate("stem", self.relu(self.norm(self.stem(x))))
        identity = x
        out = gate("inner", self.relu(self.inner(x)))
        out = gate("outer", self.outer(out))
        out += identity
        out = gate("single", F.silu(self.single(self.relu(out))))
        return self.head(out.flatten(1))


@pytest.fixture
def net() -> Gated:
    return Gated().double().eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(10, 2, 6, 6, dtype=torch.float64), torch.arange(10) % CLASSES


def loss_with(gates: dict[str, Tensor], net: Gated, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(net(images, gates), labels)


def open_gates(**options: Any) -> dict[str, Tensor]:
    return {name: torch.ones(units, dtype=torch.float64, **options) for name, units in UNITS.items()}


def by_gates(net: Gated, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """∂E/∂z of all images in one go."""
    gates = open_gates(requires_grad=True)
    loss_with(gates, net, images, labels).backward()
    return {name: gate.grad for name, gate in gates.items() if gate.grad is not None}


def test_total_is_the_squared_gradient_of_the_mean_loss(net: Gated, batch: Any) -> None:
    keep = score(net, [batch], "taylor").keep
    for name, gradient in by_gates(net, *batch).items():
        np.testing.assert_allclose(keep[name], gradient.square(), rtol=1e-9, atol=1e-18)
    assert keep["stem"][2] == 0


def test_total_is_what_finite_differences_give(net: Gated, batch: Any) -> None:
    keep, h = score(net, [batch], "taylor").keep, 1e-5
    for name, units in UNITS.items():
        for unit in range(units):
            losses = []
            for step in (h, -h):
                gates = open_gates()
                gates[name][unit] += step
                losses.append(loss_with(gates, net, *batch).item())
            assert keep[name][unit] == pytest.approx(((losses[0] - losses[1]) / (2 * h)) ** 2, rel=1e-5, abs=1e-14)


def test_image_is_the_mean_of_each_images_own_square(net: Gated, batch: Any) -> None:
    keep = score(net, [batch], Taylor("image")).keep
    squares = [by_gates(net, image[None], label[None]) for image, label in zip(*batch, strict=True)]
    for name in UNITS:
        expected = sum(gradient[name].square() for gradient in squares) / len(squares)
        np.testing.assert_allclose(keep[name], expected, rtol=1e-9, atol=1e-18)


def test_by_hand() -> None:
    # One pixel a, logits (z a, 0): E = ln(1 + e^(−a)) for label 0, its gradient −a / (1 + e^a); for label 1 it is
    # a / (1 + e^(−a)). a = ln 3: −ln 3 / 4 and 3 ln 3 / 4.
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(1, 2, bias=False)).double()
    with torch.no_grad():
        net[0].weight.fill_(1)  # type: ignore[operator]
        net[2].weight.copy_(torch.tensor([[1.0], [0.0]]))  # type: ignore[operator]
    ln3 = np.log(3)
    data = [(torch.full((2, 1, 1, 1), ln3, dtype=torch.float64), torch.tensor([0, 1]))]
    assert score(net, data, Taylor("total")).keep["0"] == pytest.approx((ln3 / 4) ** 2)
    assert score(net, data, Taylor("image")).keep["0"] == pytest.approx((ln3**2 + 9 * ln3**2) / 32)


@pytest.mark.parametrize("square", ["total", "image"])
def test_accumulated_over_batches_it_is_that_of_one_batch(net: Gated, batch: Any, square: Square) -> None:
    images, labels = batch
    parts = list(zip(images.split([1, 6, 3]), labels.split([1, 6, 3]), strict=True))
    whole, cut = score(net, [batch], Taylor(square)), score(net, parts, Taylor(square))
    for name in UNITS:
        np.testing.assert_allclose(cut.keep[name], whole.keep[name], rtol=1e-9, atol=1e-20)


def test_the_two_squares_are_told_apart_where_gradients_cancel(net: Gated, batch: Any) -> None:
    total, image = score(net, [batch], Taylor("total")).keep, score(net, [batch], Taylor("image")).keep
    assert (image["inner"] > total["inner"]).all()


def test_frozen_parameters_change_nothing(net: Gated, batch: Any) -> None:
    free = score(net, [batch], "taylor").keep
    frozen = score(net.requires_grad_(False), [batch], "taylor").keep
    for name in UNITS:
        np.testing.assert_array_equal(frozen[name], free[name])
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(net: Gated, batch: Any, off: Any) -> None:
    expected = score(net, [batch], "taylor").keep
    with off():
        found = score(net, [(batch[0].clone(), batch[1])], "taylor").keep
    for name in UNITS:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_image_that_is_classified_well_still_has_a_gradient_in_half_precision(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight = nn.Parameter(torch.tensor([8.0, 0.0]).view(2, 1, 1, 1))
    images, labels = torch.ones(1, 1, 1, 1, dtype=dtype), torch.zeros(1, dtype=torch.int64)
    keep = score(nn.Sequential(conv, nn.Flatten()).to(dtype), [(images, labels)], "taylor").keep
    p = 1 / (1 + np.exp(-8.0))  # ∂E/∂z of the first unit is (p − 1) · 8
    assert keep["0"][0] == pytest.approx((8 * (1 - p)) ** 2, rel=0.05)


def test_the_parameters_own_gradients_are_not_touched(net: Gated, batch: Any) -> None:
    score(net, [batch], "taylor")
    assert all(parameter.grad is None for parameter in net.parameters())
    net(batch[0]).sum().backward()
    before = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    score(net, [batch], "taylor")
    after = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_beside_others_with_and_without_gradients_it_gives_what_it_gives_alone(net: Gated, batch: Any) -> None:
    scorers: dict[str, str | Scorer] = {
        "total": Taylor("total"),
        "mean": "mean-activation",
        "image": Taylor("image"),
        "zeros": "apoz",
    }
    together = score_all(net, [batch], scorers)
    for label, scorer in scorers.items():
        alone = score(net, [batch], scorer)
        for name in UNITS:
            np.testing.assert_allclose(together[label].keep[name], alone.keep[name], rtol=1e-12)


def test_a_layer_that_no_gradient_reaches_is_refused_by_name() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).detach()).mean((2, 3))

    with pytest.raises(InputError, match="layer 'first': no gradient reaches its maps"):
        score(Cut(), [(torch.randn(2, 1, 3, 3), torch.tensor([0, 1]))], "taylor")


def test_a_network_without_logits_for_every_label_is_refused() -> None:
    data = [(torch.randn(2, 1, 3, 3), torch.tensor([0, 1]))]
    with pytest.raises(InputError, match=r"the model returns \(1, 2, 3, 3\), gradients need logits"):
        score(nn.Sequential(nn.Conv2d(1, 2, 1)), data, "taylor")

    class Named(list[Any]):
        classes = ("cat", "dog", "cow")

    with pytest.raises(InputError, match=r"returns \(1, 1, 3, 3\), gradients need logits \(images, classes\)"):
        score(nn.Sequential(nn.Conv2d(1, 1, 1)), Named(data), "taylor")
    three = Named([(torch.randn(2, 1, 1, 1), torch.tensor([0, 2]))])
    with pytest.raises(InputError, match=r"the logits are \(2, 2\), the largest label is 2"):
        score(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten()), three, "taylor")


@pytest.mark.parametrize("size", [1, 4, 10, 50])
def test_batch_is_the_mean_of_each_batchs_square(net: Gated, batch: Any, size: int) -> None:
    images, labels = batch
    parts = list(zip(images.split(size), labels.split(size), strict=True))
    squares = [by_gates(net, *part) for part in parts]  # the authors' program: the gradient of the batch's mean loss
    # What goes through the network together makes no difference.
    cut = list(zip(images.split([3, 1, 6]), labels.split([3, 1, 6]), strict=True))
    for data in (cut, [batch]):
        keep = score(net, data, Taylor("batch", batch=size, shuffle=False)).keep
        for name in UNITS:
            expected = sum(gradient[name].square() for gradient in squares) / len(parts)
            np.testing.assert_allclose(keep[name], expected, rtol=1e-9, atol=1e-18)


def test_batches_of_one_image_and_of_all_are_the_other_squares(net: Gated, batch: Any) -> None:
    for size, square in ((1, "image"), (10, "total")):
        found, expected = score(net, [batch], Taylor("batch", size)), score(net, [batch], Taylor(square))  # type: ignore[arg-type]
        for name in UNITS:
            np.testing.assert_allclose(found.keep[name], expected.keep[name], rtol=1e-9, atol=1e-18)


def test_shuffled_batches_are_of_several_classes_and_the_same_in_each_run(net: Gated, batch: Any) -> None:
    images, labels = batch
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    one, again = (score(net, [batch], Taylor("batch", 4)).keep for _ in range(2))
    by_hand = score(net, [(images[order], labels[order])], Taylor("batch", 4, shuffle=False)).keep
    in_order = score(net, [batch], Taylor("batch", 4, shuffle=False)).keep
    for name in UNITS:
        np.testing.assert_array_equal(one[name], again[name])
        np.testing.assert_allclose(one[name], by_hand[name], rtol=1e-9, atol=1e-20)
    assert not np.allclose(one["inner"], in_order["inner"])


def test_more_images_than_rows_are_refused_before_any_is_read() -> None:
    Taylor("batch").check((), 10_000)
    Taylor("image").check((), 10_001)
    with pytest.raises(InputError, match="keeps a row for each image, at most 10000, and there are 10001"):
        Taylor("batch").check((), 10_001)


def test_wrong_settings_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match="taylor: square is 'unit', allowed are total, image, batch"):
        Taylor(square="unit")  # type: ignore[arg-type]
    for size in (0, 2.0, True):
        with pytest.raises(InputError, match=f"taylor: batch is {size!r}, allowed are whole numbers from 1"):
            Taylor("batch", batch=size)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="taylor: shuffle is 1, allowed are true and false"):
        Taylor("batch", shuffle=1)  # type: ignore[arg-type]
    for settings in ({"batch": 8}, {"shuffle": False}):
        with pytest.raises(
            InputError, match="batch and shuffle are of square: batch; leave them out for square: image"
        ):
            Taylor("image", **settings)


def by_shared_gates(net: Gated, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """∂E/∂z where `stem` and `outer`, whose maps are added, have one gate, as a stage of the authors' ResNets has."""
    gates = {name: torch.ones(units, dtype=torch.float64, requires_grad=True) for name, units in UNITS.items()}
    loss_with(gates | {"outer": gates["stem"]}, net, images, labels).backward()
    gradients = {name: gate.grad for name, gate in gates.items() if gate.grad is not None}
    return gradients | {"outer": gradients["stem"]}


@pytest.mark.parametrize(("square", "size"), [("total", 10), ("image", 1), ("batch", 4)])
def test_a_shared_gate_has_the_gradients_of_all_its_layers_summed_with_their_signs(
    net: Gated, batch: Any, square: Square, size: int
) -> None:
    images, labels = batch
    order = torch.arange(10) if square != "batch" else torch.randperm(10, generator=torch.Generator().manual_seed(0))
    parts = [by_shared_gates(net, images[part], labels[part]) for part in order.split(size)]
    settings = {"batch": size} if square == "batch" else {}
    cut = list(zip(images.split([3, 1, 6]), labels.split([3, 1, 6]), strict=True))
    keep = score(net, cut, Taylor(square, gates="shared", **settings)).keep  # type: ignore[arg-type]
    for name in UNITS:
        expected = sum(gradient[name].square() for gradient in parts) / len(parts)
        np.testing.assert_allclose(keep[name], expected, rtol=1e-9, atol=1e-20, err_msg=name)
    assert keep["stem"].tolist() == keep["outer"].tolist()
    own = score(net, cut, Taylor(square, **settings)).keep  # type: ignore[arg-type]
    np.testing.assert_allclose(keep["inner"], own["inner"], rtol=1e-9)
    assert not np.allclose(keep["stem"], (own["stem"] + own["outer"]) / 2)


class Stage(nn.Module):
    """A residual stage of two blocks, the first with a convolution around it; gate: (units,), behind both blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.around, self.head = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1), nn.Linear(4, CLASSES)
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        def gated(maps: Tensor) -> Tensor:
            return maps if gate is None else maps * gate[:, None, None]

        x = torch.relu(self.stem(x))
        x = gated(self.first(self.one(x) + self.around(x)))
        x = gated(self.second(self.two(x) + x))
        return self.head(x.mean((2, 3)))


def test_blocks_of_a_stage_share_the_gate_of_the_authors_program(batch: Any) -> None:
    net = Stage().double().eval()
    gate = torch.ones(4, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(net(batch[0], gate), batch[1]).backward()
    assert gate.grad is not None
    keep = score(net, [batch], Taylor(gates="shared"), layers=["first", "second"]).keep
    np.testing.assert_allclose(keep["first"], gate.grad.square(), rtol=1e-9)
    np.testing.assert_allclose(keep["second"], gate.grad.square(), rtol=1e-9)


def test_behind_a_single_sum_the_blocks_own_gate_is_the_shared_gate_of_what_is_added(batch: Any) -> None:
    net = Stage().double().eval()
    # The only sum into `first`: a gate behind it, whose ReLU passes factors on, is the gate of both summands.
    shared = score(net, [batch], Taylor(gates="shared"), layers=["one", "around"]).keep
    block = score(net, [batch], Taylor(), layers=["first"]).keep["first"]
    for name in ("one", "around"):
        np.testing.assert_allclose(shared[name], block, rtol=1e-9)
    # Of a stage with two sums it is not: the blocks' own gates have other gradients.
    own = score(net, [batch], Taylor(), layers=["first", "second"]).keep
    both = score(net, [batch], Taylor(gates="shared"), layers=["first", "second"]).keep
    assert not np.allclose(own["first"], both["first"])
    assert not np.allclose(own["second"], both["first"])


def test_opposite_gradients_cancel_in_a_shared_gate() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.one(x) + self.other(x)).mean((2, 3)))

    net = Twins()
    with torch.no_grad():
        for name, weight in net.one.named_parameters():
            net.other.get_parameter(name).copy_(-weight)
    data = [(torch.randn(6, 1, 3, 3), torch.arange(6) % 2)]
    assert (score(net, data, Taylor()).keep["one"] > 0).all()
    assert score(net, data, Taylor(gates="shared")).keep["one"].tolist() == [0, 0]


class Weighted(nn.Module):
    """Plain, grouped, transposed and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 4, 3, groups=2)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.norm(self.plain(x)))))
        return self.head(torch.relu(self.up(x)).mean((2, 3)))


@pytest.mark.parametrize(("square", "size"), [("total", 10), ("image", 1), ("batch", 4)])
def test_of_weights_is_the_sum_of_squared_products_over_the_filter(batch: Any, square: Square, size: int) -> None:
    # NNI's TaylorFOWeightPruner and method 0 of Molchanov et al.'s program: (w · ∂E/∂w)² of each batch, summed.
    net, (images, labels) = Weighted().double().eval(), batch
    units = {"plain": 0, "grouped": 0, "up": 1, "head": 0}  # layer -> the dimension of its units
    found = {name: torch.zeros_like(net.get_parameter(f"{name}.weight")) for name in units}
    parts = list(zip(images.split(size), labels.split(size), strict=True))
    for part, own in parts:
        net.zero_grad()
        F.cross_entropy(net(part), own).backward()
        for name in found:
            weight = net.get_parameter(f"{name}.weight")
            assert weight.grad is not None
            found[name] += (weight * weight.grad).detach().square() / len(parts)
    net.zero_grad()
    scorer = Taylor(square, of="weights", **({"batch": size, "shuffle": False} if square == "batch" else {}))  # type: ignore[arg-type]
    net.requires_grad_(False)
    cut = list(zip(images.split([7, 3]), labels.split([7, 3]), strict=True))
    scores = score(net, cut, scorer, layers=list(units))
    for name, dim in units.items():
        expected = found[name].movedim(dim, 0).flatten(1).sum(1)
        np.testing.assert_allclose(scores.keep[name], expected, rtol=1e-9, err_msg=name)
    assert all(weight.grad is None and not weight.requires_grad for weight in net.parameters())


def test_of_weights_shuffles_batches_as_gates_do(batch: Any) -> None:
    net, (images, labels) = Weighted().double().eval(), batch
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    found = score(net, [batch], Taylor("batch", 4, of="weights")).keep
    ordered = [(images[order], labels[order])]
    expected = score(net, ordered, Taylor("batch", 4, shuffle=False, of="weights")).keep
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)
    assert not np.allclose(score(net, [batch], Taylor("batch", 4, shuffle=False, of="weights")).keep[name], found[name])


@pytest.mark.parametrize("scorer", [Taylor("image", gates="shared"), Taylor(of="weights")])
def test_what_is_kept_for_each_image_works_where_gradients_are_off(batch: Any, scorer: Taylor) -> None:
    net = Gated().double().eval()
    expected = score(net, [batch], scorer).keep
    with torch.inference_mode():
        found = score(net, [(batch[0].clone(), batch[1])], scorer).keep
    for name in UNITS:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_module_without_weights_is_refused_before_any_image_is_read(batch: Any) -> None:
    class Unread(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("an image was read")

    net = Stage().double().eval()
    with pytest.raises(InputError, match="layer 'first' is a ReLU and has no filters of its own"):
        score(net, Unread([batch]), Taylor(of="weights"), layers=["first"], example=batch[0][:1])


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="taylor: of is 'units', allowed are gates, weights"):
        Taylor(of="units")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="taylor: gates is 'one', allowed are own, shared"):
        Taylor(gates="one")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="taylor: gates: shared is of gates; leave it out for of: weights"):
        Taylor(of="weights", gates="shared")
    for scorer, what in (
        (Taylor(of="weights"), "of: weights"),
        (Taylor("image", gates="shared"), "square: image"),
    ):
        scorer.check((), 10_000)
        with pytest.raises(InputError, match=f"taylor: {what} keeps a row for each image, at most 10000"):
            scorer.check((), 10_001)
    Taylor(gates="shared").check((), 10_001)
