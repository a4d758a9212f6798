"""What becomes of channels in torch.einsum."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prune_fe.tracing.einsum_rule import parse_equation
from tests.tracing.networks import X, cut_every_second


@pytest.mark.parametrize(
    ("equation", "ndims", "expected"),
    [
        ("ij,jk->ik", [2, 2], ["ij", "jk", "ik"]),
        ("B H I D, B H J D -> B H I J", [4, 4], ["BHID", "BHJD", "BHIJ"]),
        ("ba,cb", [2, 2], ["ba", "cb", "ac"]),
        ("...a,ab->...b", [3, 2], [["...1", "...0", "a"], "ab", ["...1", "...0", "b"]]),
        ("a...,...->a", [3, 1], [["a", "...1", "...0"], ["...0"], "a"]),
    ],
)
def test_the_indices_of_an_equation(equation: str, ndims: list[int], expected: list[str]) -> None:
    assert parse_equation(equation, ndims) == list(map(list, expected))


def test_an_index_that_a_tensor_has_twice_and_other_forms_are_not_known() -> None:
    assert parse_equation("ii->i", [2]) is None
    assert parse_equation(torch.ones(1), [1]) is None


Product = Callable[["Products", Tensor, Tensor, Tensor], Tensor]


class Products(nn.Module):
    """Three convolutions of 8 units, a product of what they give, and a head that reads its mean."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product
        self.a, self.b, self.c = (nn.Conv2d(3, 8, 4, stride=4) for _ in range(3))
        self.scale, self.matrix = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8, 8))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        value = self.product(self, *(layer(x).flatten(2) for layer in (self.a, self.b, self.c)))
        return self.last(value.flatten(2).mean(2))


def attend(net: Products, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.einsum("npq,ncq->ncp", torch.einsum("ncp,ncq->npq", a, b).softmax(-1), c)


def attend_by_heads(net: Products, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    a, b, c = (value.unflatten(1, (-1, 4)) for value in (a, b, c))
    scores = torch.einsum("... d p, ... d q -> ... p q", a, b)
    return torch.einsum("...pq,...dq->...dp", scores.softmax(-1), c).flatten(1, 2)


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        (lambda net, a, b, c: torch.einsum("ncp,ncp,npc->ncp", a, b, c.mT), [(("a", "b", "c"), 8)]),
        (lambda net, a, b, c: torch.einsum("ncp,ncp->nc", a, b)[..., None], [(("a", "b"), 8), (("c",), 8)]),
        (
            lambda net, a, b, c: torch.einsum("ncp,c,c->np", a, net.scale, net.scale)[:, :8, None],
            [((k,), 8) for k in "abc"],
        ),
        (lambda net, a, b, c: torch.einsum("pnc->nc", [a.movedim(2, 0)])[..., None], [((k,), 8) for k in "abc"]),
        (lambda net, a, b, c: torch.einsum(a, [0, 1, 2], b, [0, 1, 3], [0, 1, 2]), [(("a", "b"), 8), (("c",), 8)]),
        (attend, [(("a", "b"), 8), (("c",), 8)]),
    ],
)
def test_what_is_multiplied_goes_together(product: Product, expected: list[object]) -> None:
    groups, cut, difference = cut_every_second(Products(product), X, ["a", "b", "c"])
    assert [(group.layers, len(group.sets)) for group in groups] == expected
    assert [group.reason for group in groups] == [None] * len(expected)
    assert difference < 1e-12
    assert cut.a.out_channels == 4


def test_the_channels_of_a_head_of_attention_go_together() -> None:
    groups, _, difference = cut_every_second(Products(attend_by_heads), X, ["a", "b", "c"])
    (group,) = groups
    assert group.layer_units == dict.fromkeys("abc", ((0, 1, 2, 3), (4, 5, 6, 7)))
    assert difference < 1e-12


@pytest.mark.parametrize(
    ("product", "reason"),
    [
        (lambda net, a, b, c: torch.einsum("ncp,ndp->ncd", a, b), "its channels go through einsum() in the network's"),
        (
            lambda net, a, b, c: torch.einsum("ncp,ncp,cd->ndp", a, b, net.matrix),
            "combined with 8 values that no layer with units gave, in the network's",
        ),
    ],
)
def test_other_products_keep_their_channels(product: Product, reason: str) -> None:
    groups, _, _ = cut_every_second(Products(product), X, ["a"])
    assert [group.reason for group in groups] == [f"{reason} code"]
