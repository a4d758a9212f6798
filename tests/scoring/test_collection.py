"""One pass for several scorers; what is interrupted goes on, what is finished is used again, to the same bits."""

import copy
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from prune_fe.data import sampling
from prune_fe.data.sampling import choose_images
from prune_fe.errors import CheckpointError, InputError
from prune_fe.scorers import SCORERS
from prune_fe.scorers.apoz import APoZ
from prune_fe.scorers.base import Rows
from prune_fe.scorers.feature_entropy import FeatureEntropy
from prune_fe.scorers.nisp import NISP
from prune_fe.scoring import collection as collecting
from prune_fe.scoring import score as scoring
from prune_fe.scoring.score import score, score_all
from prune_fe.scoring.scores import Scores, load_scores
from prune_fe.scoring.sums import RunningSum

READERS = [name for name in SCORERS if SCORERS[name].needs_data]
BATCH = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.second, self.norm2 = nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)
        self.head, self.fails = nn.Linear(4, 3), False

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        if self.fails:
            raise KeyboardInterrupt
        return self.head(torch.relu(self.norm2(self.second(x))).mean((2, 3)))


class Counting(Dataset[Any]):
    """23 images of three classes. reads: which ones were read; those from number `broken` on cannot be."""

    classes = ("cat", "dog", "cow")

    def __init__(self) -> None:
        self.images = torch.randn(23, 2, 9, 9, generator=torch.Generator().manual_seed(5))
        self.targets = [i % 3 for i in range(23)]
        self.reads: list[int] = []
        self.broken = 1000

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self.broken:
            raise KeyboardInterrupt
        self.reads.append(index)
        return self.images[index], self.targets[index]


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def images() -> Counting:
    return Counting()


def scored(net: nn.Module, images: Counting, folder: Path | None, scorers: Any = READERS, **options: Any) -> Any:
    """The example is given, so that no image is read for it."""
    usual: dict[str, Any] = {"batch_size": BATCH, "example": images.images[:1]}
    return score_all(net, images, scorers, folder=folder, **usual | options)


def assert_same_bits(one: Scores, other: Scores) -> None:
    assert (one.scorer, one.classes, one.images, one.settings) == (
        other.scorer,
        other.classes,
        other.images,
        other.settings,
    )
    assert one.keep.keys() == other.keep.keys()
    assert one.raw.keys() == other.raw.keys()
    for layer in one.keep:
        np.testing.assert_array_equal(one.keep[layer], other.keep[layer])
        for quantity in one.raw:
            np.testing.assert_array_equal(one.raw[quantity][layer], other.raw[quantity][layer])


def interrupt(net: Net, images: Counting, folder: Path | None, scorers: Any = READERS, **options: Any) -> None:
    """After two batches, by an image that cannot be read; then the image is mended."""
    images.broken = 2 * BATCH + 2
    with pytest.raises(KeyboardInterrupt):
        scored(net, images, folder, scorers, **options)
    images.broken = 1000
    images.reads.clear()


def test_scorers_that_share_a_pass_give_what_each_gives_alone(net: Net, images: Counting) -> None:
    net, images.images = net.double(), images.images.double()
    together = scored(net, images, None, list(SCORERS))
    assert list(together) == list(SCORERS)
    for name, scores in together.items():
        alone = scored(net, images, None, [name])[name]
        for layer in alone.keep:
            np.testing.assert_allclose(scores.keep[layer], alone.keep[layer], rtol=1e-9, err_msg=f"{name} {layer}")


def test_a_shared_pass_reads_each_image_once(net: Net, images: Counting) -> None:
    scored(net, images, None)
    assert images.reads == list(range(23))


def test_labels_tell_two_settings_of_one_scorer_apart(net: Net, images: Counting) -> None:
    judges = {"elements": FeatureEntropy(), "edges": FeatureEntropy(rank="edges"), "zeros": "apoz"}
    found = scored(net, images, None, judges)
    assert list(found) == ["elements", "edges", "zeros"]
    assert [scores.scorer for scores in found.values()] == ["feature-entropy", "feature-entropy", "apoz"]
    assert_same_bits(found["edges"], scored(net, images, None, [FeatureEntropy(rank="edges")])["feature-entropy"])
    with pytest.raises(InputError, match="scorer 'feature-entropy' stands twice: give each a label"):
        scored(net, images, None, [FeatureEntropy(), FeatureEntropy(rank="edges")])


def by_an_image(net: Net, images: Counting, folder: Path) -> None:
    interrupt(net, images, folder)


def by_the_network(net: Net, images: Counting, folder: Path) -> None:
    """In the middle of a batch: one layer is measured and the other not."""

    def progress(done: int, total: int) -> None:
        net.fails = done == 2 * BATCH

    with pytest.raises(KeyboardInterrupt):
        scored(net, images, folder, progress=progress)
    net.fails = False
    images.reads.clear()


def by_the_user(net: Net, images: Counting, folder: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done == 2 * BATCH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored(net, images, folder, progress=progress)
    images.reads.clear()


@pytest.mark.parametrize("stop", [by_an_image, by_the_network, by_the_user])
def test_interrupted_and_resumed_gives_the_bits_of_a_run_in_one_go(
    net: Net, images: Counting, tmp_path: Path, stop: Callable[[Net, Counting, Path], None]
) -> None:
    whole = scored(net, images, None)
    stop(net, images, tmp_path)
    images.reads.clear()
    seen: list[tuple[int, int]] = []
    resumed = scored(net, images, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert images.reads == list(range(2 * BATCH, 23))  # what is done is not read again
    assert seen == [(12, 23), (16, 23), (20, 23), (23, 23)]
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])
        assert_same_bits(load_scores(tmp_path / name), whole[name])


def test_it_can_be_interrupted_again_and_after_the_last_image(net: Net, images: Counting, tmp_path: Path) -> None:
    whole = scored(net, images, None)

    def stop_at(number: int) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if done == number:
                raise KeyboardInterrupt

        return progress

    for number in (4, 16, 23):
        with pytest.raises(KeyboardInterrupt):
            scored(net, images, tmp_path, progress=stop_at(number))
    images.reads.clear()
    resumed = scored(net, images, tmp_path)
    assert images.reads == []
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])


def test_a_sample_of_the_classes_is_resumed_too(net: Net, images: Counting, tmp_path: Path) -> None:
    options: dict[str, Any] = {"classes": [0, 2], "samples": 6, "seed": 4}
    whole = scored(net, images, None, **options)
    images.reads.clear()
    scored(net, images, None, **options)
    order = images.reads.copy()
    assert len(order) == 12
    images.broken = order[-1]
    with pytest.raises(KeyboardInterrupt):
        scored(net, images, tmp_path, **options)
    images.broken = 1000
    images.reads.clear()
    resumed = scored(net, images, tmp_path, **options)
    assert images.reads == order[2 * BATCH :]
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])


def test_what_is_unfinished_is_also_written_now_and_then(
    net: Net, images: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "SNAPSHOT_SECONDS", 0.0)
    there: list[bool] = []
    scored(net, images, tmp_path, progress=lambda done, total: there.append((tmp_path / ".unfinished-0").exists()))
    assert there == [False, True, True, True, True, True]
    assert not list(tmp_path.glob(".unfinished*"))


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "rubbish"])
def test_a_damaged_unfinished_file_is_ignored_and_everything_starts_again(
    net: Net, images: Counting, tmp_path: Path, damage: str
) -> None:
    whole = scored(net, images, None)
    interrupt(net, images, tmp_path)
    path = tmp_path / ".unfinished-0"
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes({"empty": b"", "short": content[:middle], "flipped": flipped, "rubbish": b"x" * 99}[damage])
    resumed = scored(net, images, tmp_path)
    assert images.reads == list(range(23))
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"batch_size": 4}, {"batch_size": 5}),
        ({"scorers": ["apoz", "hrank"]}, {"scorers": ["hrank", "apoz"]}),
        ({"scorers": ["apoz", "hrank"]}, {"scorers": ["apoz"]}),
        ({"scorers": {"a": "apoz"}}, {"scorers": {"b": "apoz"}}),
        ({"scorers": ["feature-entropy"]}, {"scorers": [FeatureEntropy(p=0.2)]}),
        ({"seed": 0, "samples": 5}, {"seed": 1, "samples": 5}),
        ({"layers": ["first"]}, {"layers": ["second"]}),
    ],
    ids=["batches", "order", "fewer", "labels", "settings", "sample", "layers"],
)
def test_what_other_work_left_unfinished_is_not_gone_on_with(
    net: Net, images: Counting, tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    interrupt(net, images, tmp_path, **before)
    assert (tmp_path / ".unfinished-0").exists()
    resumed, whole = scored(net, images, tmp_path, **after), scored(net, images, None, **after)
    for label in whole:
        assert_same_bits(resumed[label], whole[label])


def test_what_two_processes_left_is_not_gone_on_with_by_one(
    net: Net, images: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scored(net, images, None)
    with monkeypatch.context() as patch:
        for module in (sampling, scoring):
            patch.setattr(module, "world_size", lambda: 2)
        interrupt(net, images, tmp_path)
    resumed = scored(net, images, tmp_path)
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])


def test_finished_scores_are_used_again_without_reading_an_image(net: Net, images: Counting, tmp_path: Path) -> None:
    first = scored(net, images, tmp_path, [*READERS, "l1-filter"])
    images.reads.clear()
    images.broken = 0
    again = scored(net, images, tmp_path, [*READERS, "l1-filter"])
    assert images.reads == []
    for name, scores in first.items():
        assert_same_bits(again[name], scores)
        assert again[name].seconds == scores.seconds


def test_finished_scores_that_are_damaged_say_what_to_do(net: Net, images: Counting, tmp_path: Path) -> None:
    first = scored(net, images, tmp_path, ["apoz"])["apoz"]
    whole = (tmp_path / "apoz/scores.npz").read_bytes()
    (tmp_path / "apoz/scores.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="scores.npz.*; delete .*apoz, and it is made again"):
        scored(net, images, tmp_path, ["apoz"])
    shutil.rmtree(tmp_path / "apoz")
    assert_same_bits(scored(net, images, tmp_path, ["apoz"])["apoz"], first)


def test_only_what_is_not_finished_is_measured(net: Net, images: Counting, tmp_path: Path) -> None:
    first = scored(net, images, tmp_path, ["hrank"])["hrank"]
    written = (tmp_path / "hrank" / "scores.npz").stat().st_mtime_ns
    both = scored(net, images, tmp_path, ["apoz", "hrank", "bn-scale"])
    assert list(both) == ["apoz", "hrank", "bn-scale"]
    assert both["hrank"].seconds == first.seconds
    assert (tmp_path / "hrank" / "scores.npz").stat().st_mtime_ns == written
    assert_same_bits(both["apoz"], scored(net, images, None, ["apoz"])["apoz"])


def test_a_scorer_beside_it_makes_no_other_work_of_it(net: Net, images: Counting, tmp_path: Path) -> None:
    options: dict[str, Any] = {"example": None, "samples": 2, "seed": 3}
    first = scored(net, images, tmp_path, ["apoz"], **options)["apoz"]
    again = scored(net, images, tmp_path, ["apoz", "bn-scale"], **options)["apoz"]
    assert again.seconds == first.seconds


def test_a_scorer_of_weights_alone_is_known_with_and_without_images_beside_it(
    net: Net, images: Counting, tmp_path: Path
) -> None:
    alone = score_all(net, None, ["l1-filter"], folder=tmp_path)["l1-filter"]
    beside = scored(net, images, tmp_path, ["l1-filter", "apoz"])["l1-filter"]
    assert beside.seconds == alone.seconds


def test_an_image_that_stands_twice_counts_twice(net: Net, images: Counting, tmp_path: Path) -> None:
    twice, once = Subset(images, [0, 0, 0, 1, 2]), Subset(images, [0, 1, 2])
    example = images.images[:1]
    assert score_all(net, twice, ["apoz"], folder=tmp_path, example=example)["apoz"].images == 5
    with pytest.raises(InputError, match="other images"):
        score_all(net, once, ["apoz"], folder=tmp_path, example=example)


def test_another_activation_is_another_model(net: Net, images: Counting, tmp_path: Path) -> None:
    def network(activation: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 3), activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    scored(network(nn.ReLU()), images, tmp_path, ["apoz"])
    with pytest.raises(InputError, match="apoz holds scores of another model"):
        scored(network(nn.SiLU()), images, tmp_path, ["apoz"])


@pytest.mark.parametrize("label", ["../evil", "", "a/b", ".hidden", 1])
def test_a_label_that_is_no_name_of_a_folder_is_refused(net: Net, images: Counting, tmp_path: Path, label: Any) -> None:
    with pytest.raises(InputError, match="it names a folder"):
        scored(net, images, tmp_path / "here", {label: "apoz"})
    assert list(tmp_path.iterdir()) == []


def test_no_scorer_is_refused(net: Net, images: Counting) -> None:
    with pytest.raises(InputError, match="must be a list of scorers"):
        scored(net, images, None, [])
    with pytest.raises(InputError, match="must be a list of scorers"):
        scored(net, images, None, {})


def test_a_scorer_that_fails_at_the_end_costs_the_others_nothing(net: Net, images: Counting, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only exists below"):
        scored(net, images, tmp_path, [NISP(r=1e6), "apoz"])
    images.reads.clear()
    scored(net, images, tmp_path, ["apoz"])
    assert images.reads == []


def test_labels_that_are_not_written_down_cost_no_second_reading(net: Net) -> None:
    class Bare(Dataset[Any]):
        reads = 0

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            type(self).reads += 1
            return torch.zeros(2, 9, 9), index % 3

    score(net, Bare(), "apoz", example=torch.zeros(1, 2, 9, 9))
    assert Bare.reads == 6


def test_the_example_costs_one_image(net: Net, images: Counting) -> None:
    scored(net, images, None, ["apoz"], example=None)
    assert len(images.reads) == 24


def other_names(net: Net, images: Counting) -> dict[str, Any]:
    images.classes = ("cat", "dog", "bull")
    return {}


def other_weights(net: Net, images: Counting) -> dict[str, Any]:
    with torch.no_grad():
        net.norm2.bias[1] += 0.5
    return {}


def other_pixels(net: Net, images: Counting) -> dict[str, Any]:
    images.images = images.images + 1
    return {}


def other_labels(net: Net, images: Counting) -> dict[str, Any]:
    images.targets[4] = 0
    return {}


@pytest.mark.parametrize(
    "change",
    [
        other_weights,
        other_pixels,
        other_labels,
        other_names,
        lambda net, images: {"seed": 1},
        lambda net, images: {"samples": 4},
        lambda net, images: {"classes": [0, 1]},
        lambda net, images: {"layers": ["second"]},
        lambda net, images: {"scorers": {"feature-entropy": FeatureEntropy(p=0.2)}},
        lambda net, images: {"scorers": {"feature-entropy": "apoz"}},
    ],
    ids=["weights", "pixels", "labels", "names", "seed", "samples", "classes", "layers", "settings", "scorer"],
)
def test_a_folder_with_scores_of_something_else_is_refused_and_left(
    net: Net, images: Counting, tmp_path: Path, change: Callable[[Net, Counting], dict[str, Any]]
) -> None:
    usual: dict[str, Any] = {"scorers": ["feature-entropy"], "samples": 5}
    first = scored(net, images, tmp_path, **usual)["feature-entropy"]
    options = change(net, images)
    images.reads.clear()
    with pytest.raises(InputError, match="feature-entropy holds scores of another model, other images or other settin"):
        scored(net, images, tmp_path, **usual | options)
    assert images.reads == []
    assert_same_bits(load_scores(tmp_path / "feature-entropy"), first)


def test_ready_batches_have_no_names_and_take_no_folder(net: Net, images: Counting, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder= needs a data set; ready batches have no names to know them by"):
        score_all(net, [(images.images, torch.tensor(images.targets))], ["apoz"], folder=tmp_path)


def test_scores_know_where_they_come_from(net: Net, images: Counting, tmp_path: Path) -> None:
    scored(net, images, tmp_path, ["apoz", "l1-filter"], samples=2, seed=3)
    about = load_scores(tmp_path / "apoz").provenance
    chosen = choose_images(images, None, 2, 3)
    assert about["images"] == [[str(number), images.classes[images.targets[number]]] for number in chosen]
    assert list(about["layers"]) == ["first", "second"]
    assert about["model"] == "Net"
    assert len(about["model_sha256"]) == len(about["key"]) == len(about["example_sha256"]) == 64
    weights = load_scores(tmp_path / "l1-filter").provenance
    assert "images" not in weights
    assert weights["model_sha256"] == about["model_sha256"]
    assert weights["key"] != about["key"]
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.head.bias[0] += 1e-6
    assert score(twin, scorer="l1-filter").provenance["model_sha256"] != about["model_sha256"]


def test_scores_know_what_they_cost(net: Net, images: Counting, tmp_path: Path) -> None:
    found = scored(net, images, tmp_path, [*READERS, "l1-filter"])
    for name, scores in found.items():
        assert 0 < scores.own_seconds <= scores.seconds
        assert scores.peak_bytes is None or scores.peak_bytes >= 0
        kept = load_scores(tmp_path / name)
        assert (kept.seconds, kept.own_seconds, kept.peak_bytes) == (
            scores.seconds,
            scores.own_seconds,
            scores.peak_bytes,
        )
    assert found["l1-filter"].seconds == found["l1-filter"].own_seconds
    network = [scores.seconds - scores.own_seconds for name, scores in found.items() if name in READERS]
    assert max(network) == pytest.approx(min(network))  # the same pass for all of them


def test_a_scorer_pays_for_its_own_measurements_only(net: Net, images: Counting) -> None:
    class Slow(APoZ):
        def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Any:
            time.sleep(0.01)
            return super().measure(maps, labels, classes)

    found = scored(net, images, None, {"slow": Slow(), "quick": APoZ()})
    assert found["slow"].own_seconds - found["quick"].own_seconds > 0.1  # six batches, two layers
    network = [scores.seconds - scores.own_seconds for scores in found.values()]
    assert network[0] == pytest.approx(network[1])  # what they share, and nothing of the other's


def test_a_running_sum_is_the_sum_in_the_order_of_the_batches() -> None:
    for batches in range(1, 20):
        total = RunningSum()
        for number in range(batches):
            counts = torch.eye(3)[number % 3].to_sparse()
            total.add({"rows": Rows(torch.tensor([number]), 20), "sparse": counts, "dense": torch.tensor(number)})
        found: Any = total.total()
        assert found["rows"].values.tolist() == list(range(batches))
        assert found["sparse"].to_dense().tolist() == [len(range(first, batches, 3)) for first in range(3)]
        assert found["dense"] == sum(range(batches))


def test_an_interruption_while_a_batch_is_added_costs_that_batch_and_nothing_else(
    net: Net, images: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, add, calls = scored(net, images, None), RunningSum.add, 0
    a_batch = 2 * len(READERS) - 1  # totals that it is added to: nisp has one layer, all others two

    def add_in_part(total: RunningSum, sums: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2 * a_batch + 3:
            raise KeyboardInterrupt
        add(total, sums)

    monkeypatch.setattr(collecting, "SNAPSHOT_SECONDS", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunningSum, "add", add_in_part)
        scored(net, images, tmp_path)
    images.reads.clear()
    resumed = scored(net, images, tmp_path)
    assert images.reads == list(range(2 * BATCH, 23))
    for name in READERS:
        assert_same_bits(resumed[name], whole[name])


def test_an_interruption_without_a_folder_leaves_nothing(
    net: Net, images: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    interrupt(net, images, None)
    assert list(tmp_path.iterdir()) == []
