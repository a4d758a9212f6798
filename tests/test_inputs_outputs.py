"""Networks with any inputs and outputs are scored, pruned, measured and exported like those of one image and logits."""

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from prune_fe import cost, evaluate, inspect, prune, score, speed
from prune_fe.errors import DataError, InputError
from prune_fe.measure.latency import Comparison, compare_latency
from prune_fe.models.export import Format, export
from prune_fe.pruning.verify import randomise
from prune_fe.tracing.nested import Inputs

Named = namedtuple("Named", "y maps")


@dataclass
class Head:
    y: Tensor
    maps: list[Tensor]


def block(channels: int, units: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, units, 3, 2, 1, bias=False), nn.BatchNorm2d(units), nn.ReLU())


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth, self.both, self.head = block(3, 8), block(1, 4), block(12, 8), nn.Linear(8, 5)

    def forward(self, image: Tensor, depth: Tensor, scale: float = 1.0) -> Any:
        return scale * self.head(self.both(torch.cat([self.image(image), self.depth(depth)], 1)).mean((2, 3)))


class Keywords(TwoInputs):
    def forward(self, *, image: Tensor, depth: Tensor, scale: float = 1.0) -> Any:  # type: ignore[override]
        return {"logits": super().forward(image, depth, scale)}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(20, 6), block(6, 8), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        grid = self.embed(tokens).permute(0, 2, 1)[..., None].repeat(1, 1, 1, 4)
        return self.head(self.body(grid).mean((2, 3)))


class Pyramid(nn.Module):
    """A detector-like network: one map of each resolution is returned, in a form of the caller's choice."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form = form
        self.blocks = nn.ModuleList([block(3, 8), block(8, 12), block(12, 8)])
        self.heads = nn.ModuleList([nn.Conv2d(units, 4, 1) for units in (8, 12, 8)])

    def forward(self, image: Tensor) -> Any:
        maps = []
        for part, head in zip(self.blocks, self.heads, strict=True):
            image = part(image)
            maps.append(head(image))
        return self.form(torch.cat([part.flatten(2) for part in maps], dim=2).mean(2), maps)


class Images(nn.Module):
    """A network that reads a list of images of any size, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 8), block(8, 6))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        batch = torch.stack([F.interpolate(image[None], (16, 16))[0] for image in images])
        return [{"box": box} for box in self.body(batch).mean((2, 3))]


IMAGE, DEPTH = torch.randn(1, 3, 16, 16), torch.randn(1, 1, 16, 16)
NETWORKS: dict[str, tuple[nn.Module, Inputs]] = {
    "two tensors": (TwoInputs(), (IMAGE, DEPTH)),
    "a number beside tensors": (TwoInputs(), (IMAGE, DEPTH, 2.0)),
    "keywords": (Keywords(), {"image": IMAGE, "depth": DEPTH}),
    "tokens": (Tokens(), torch.randint(0, 20, (1, 8))),
    "a YOLO-like head": (Pyramid(lambda y, maps: (y, maps)), IMAGE),
    "out and aux": (Pyramid(lambda y, maps: {"out": maps[0], "aux": maps[1], "n": 3, "none": None}), IMAGE),
    "a named tuple": (Pyramid(Named), IMAGE),
    "a dataclass": (Pyramid(Head), IMAGE),
    "class numbers": (Pyramid(lambda y, _: (y, y.argmax(1))), IMAGE),
    "a list of images": (Images(), [IMAGE[0], torch.randn(3, 20, 12)]),
}


def network(kind: str) -> tuple[nn.Module, Inputs]:
    model, example = NETWORKS[kind]
    randomise(model)
    return model.eval(), example


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_kind_is_pruned_and_measured(kind: str) -> None:
    model, example = network(kind)
    pruned = prune(model, score(model, scorer="l1-filter", example=example), 0.5, example)
    assert pruned.steps
    assert all(step.count == step.asked > 0 for step in pruned.steps), pruned.steps
    difference, largest = pruned.difference(model, example)
    assert difference < 1e-5 * largest
    assert cost(pruned.model, example).macs < 0.6 * cost(model, example).macs
    assert speed(pruned.model, example, batch_size=2, seconds=0.01).batch_size == 2
    (result,) = compare_latency(
        model, pruned.model, example, batch_sizes=[2], threads=[1], memory_formats=["channels_last"], seconds=0.01
    )
    assert isinstance(result, Comparison), result
    table = inspect(model, example)
    assert (table.removable > 0).sum() == len(pruned.steps)


@pytest.mark.parametrize("kind", ["two tensors", "out and aux"])
def test_a_wrong_cut_of_one_output_is_seen(kind: str) -> None:
    model, example = network(kind)
    pruned = prune(model, score(model, scorer="l1-filter", example=example), 0.5, example)
    last = [module for module in pruned.model.modules() if isinstance(module, nn.Conv2d | nn.Linear)][-1]
    if kind == "out and aux":
        last = pruned.model.heads[1]  # type: ignore[index, assignment]
    last.weight.data[0] += 1
    difference, largest = pruned.difference(model, example)
    assert difference > 1e-2 * largest


class Mixing(nn.Module):
    """A network whose first map is multiplied by its mean over the channels, which no cut keeps."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.form, self.first, self.second, self.head = form, block(3, 8), block(8, 8), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> Any:
        maps = self.first(image)
        return self.form(self.head(self.second(maps * maps.mean(1, keepdim=True))))


DIAGONAL = torch.eye(4, dtype=torch.bool)
COARSE: dict[str, Any] = {
    "a mask": lambda map: (map > 100).float(),
    "saturated": lambda map: torch.sigmoid(map + 1e6),
    "zeros": lambda map: {"loss": map.sum() * 0},
    "filled with -1e30": lambda map: map.masked_fill(DIAGONAL, -1e30),
    "filled with -inf": lambda map: map.masked_fill(DIAGONAL, float("-inf")),
}


@pytest.mark.parametrize("kind", COARSE)
def test_outputs_that_show_little_prove_no_wrong_cut(kind: str) -> None:
    model = Mixing(COARSE[kind]).eval()
    randomise(model)
    steps = {step.layers: step for step in prune(model, score(model, scorer="l1-filter"), 0.5, IMAGE).steps}
    assert steps["first.0",].count == 0
    assert "perhaps mean() over the channels" in str(steps["first.0",].left)


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind != "a number beside tensors"])
def test_every_kind_is_exported(kind: str, format: Format, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    model, example = network(kind)
    done = export(model, tmp_path / f"net{'.onnx' if format == 'onnx' else '.pt2'}", example, format)
    assert done.batches == ((2,) if kind == "a list of images" else (1, 2, 5))
    assert done.relative_difference < 1e-5


def test_the_names_in_an_onnx_file_are_those_of_the_arguments_and_keys(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, example = network("keywords")
    export(model, tmp_path / "net.onnx", example)
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    assert [entry.name for entry in session.get_inputs()] == ["image", "depth"]
    assert [entry.name for entry in session.get_outputs()] == ["logits"]


class Samples(Dataset[Any]):
    """Images and depths with labels 0 to 4, as a tuple or a dict."""

    def __init__(self, form: Any) -> None:
        self.form = form

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Any, int]:
        generator = torch.Generator().manual_seed(index)
        draw = [torch.randn(channels, 16, 16, generator=generator) for channels in (3, 1)]
        return self.form(*draw), index % 5


def as_tuple(image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    return image, depth


def as_dict(image: Tensor, depth: Tensor) -> dict[str, Tensor]:
    return {"image": image, "depth": depth}


@pytest.mark.parametrize("scorer", ["feature-entropy", "class-selectivity", "apoz", "nisp", "taylor"])
def test_images_of_several_tensors_are_scored(scorer: str) -> None:
    model = TwoInputs().eval()
    named = Keywords().eval()
    randomise(model)
    randomise(named)
    of_tuples = score(model, Samples(as_tuple), scorer)
    of_dicts = score(named, Samples(as_dict), scorer, logits=lambda out: out["logits"])
    of_loader = score(model, DataLoader(Samples(as_tuple), 256), scorer)
    assert of_tuples.images == 20
    assert len(of_tuples.classes) == 5
    for layer, values in of_tuples.keep.items():
        assert values.tolist() == of_dicts.keep[layer].tolist() == of_loader.keep[layer].tolist()
    assert any(values.any() for values in of_tuples.keep.values())


def test_logits_are_asked_for_only_where_they_are_needed() -> None:
    model, _ = network("keywords")
    assert score(model, Samples(as_dict), "feature-entropy").images == 20
    with pytest.raises(
        InputError, match=r"the model returns \['logits'\] \(1, 5\), gradients need logits .*logits=FUNC"
    ):
        score(model, Samples(as_dict), "taylor")
    with pytest.raises(InputError, match="a classifier returns logits .*logits=FUNCTION"):
        evaluate(model, Samples(as_dict))
    assert evaluate(model, Samples(as_dict), logits=lambda out: out["logits"]).images == 20
    with pytest.raises(InputError, match="logits is a str; it must be a function"):
        score(model, Samples(as_dict), "taylor", logits="logits")  # type: ignore[arg-type]


def test_a_detector_is_scored_by_the_labels_of_its_images() -> None:
    model, _ = network("a list of images")
    batches = [([torch.randn(3, 16, 16) for _ in range(4)], torch.tensor([0, 1, 2, 2]))]
    scores = score(model, batches, "feature-entropy")
    assert (scores.images, scores.classes) == (4, ("0", "1", "2"))


class Growing(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(3, 16 + index, 16), index % 2


def test_images_of_different_sizes_are_refused_with_their_sizes() -> None:
    model = nn.Sequential(block(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    message = r"images of different sizes .* one batch: \(3, 16, 16\) and \(3, 17, 16\); resize or crop them"
    with pytest.raises(DataError, match=message):
        score(model, Growing(), "apoz")
    batches = [(torch.randn(2, 3, size, size), torch.tensor([0, 1])) for size in (16, 24)]
    with pytest.raises(InputError, match="layer '0.0': all maps of a layer must have one size, so the images too"):
        score(model, batches, "feature-entropy")
    assert score(model, batches, "apoz").images == 4


@pytest.mark.filterwarnings("ignore:left out")
def test_a_detector_of_torchvision_is_cut_and_can_be_trained() -> None:
    build = torchvision.models.detection.retinanet_resnet50_fpn
    model = build(weights=None, weights_backbone=None, num_classes=5, min_size=64, max_size=64).eval()
    example = [torch.rand(3, 64, 64)]
    pruned = prune(model, score(model, scorer="l1-filter", example=example), 0.5, example)
    assert len(pruned.steps) == 49
    whole = {step.layers for step in pruned.steps if step.count != step.asked}
    assert whole == {("head.classification_head.cls_logits",), ("head.regression_head.bbox_reg",)}  # the outputs
    assert pruned.macs == pytest.approx(cost(pruned.model, example).macs / cost(model, example).macs, abs=0.01)
    losses = pruned.model.train()(example, [{"boxes": torch.tensor([[1.0, 1, 30, 30]]), "labels": torch.tensor([1])}])
    assert sum(losses.values()).isfinite()
