"""The data sources by name: one loader for all of them, and hints for what is misspelt."""

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch

from prune_fe.data.digits import digits
from prune_fe.data.labels import image_labels
from prune_fe.data.options import DataOptions
from prune_fe.data.registry import SOURCES, load_data, parse_data
from prune_fe.data.splits import Splits, draw_of_each_class
from prune_fe.errors import InputError
from prune_fe.options import validate_options
from tests.data.containers import write_source
from tests.data.pictures import images_of, photos


def options(**keywords: Any) -> DataOptions:
    return validate_options(DataOptions, None, "data", **keywords)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_holds_out_the_asked_share_by_the_seed(
    source: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_source(source, tmp_path, monkeypatch)
    chosen = options(source=source, path=path and str(path), size=8, validation=0.3)
    one, two, again = (load_data(chosen, seed=seed) for seed in (1, 2, 1))
    train, validation = one.train, one.validation
    assert isinstance(one, Splits)
    assert one.test[0][0].shape == (one.channels, 8, 8)
    assert len(validation) / (len(train) + len(validation)) == pytest.approx(0.3, abs=0.11)  # type: ignore[arg-type]
    assert validation.indices == again.validation.indices  # type: ignore[attr-defined]
    assert validation.indices != two.validation.indices  # type: ignore[attr-defined]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_draws_so_many_training_images_of_a_class_and_keeps_all_test_images(
    source: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_source(source, tmp_path, monkeypatch)
    every: Any = load_data(options(source=source, path=path and str(path), size=8), seed=1)
    few: Any = load_data(options(source=source, path=path and str(path), size=8, images_per_class=4), seed=1)
    assert Counter(image_labels(few.train)) == dict.fromkeys(range(len(few.classes)), 3)
    assert Counter(image_labels(few.validation)) == dict.fromkeys(range(len(few.classes)), 1)
    assert torch.equal(images_of(few.test), images_of(every.test))
    drawn = sorted([*few.train.indices, *few.validation.indices])
    assert drawn == draw_of_each_class(image_labels(every.train.dataset), few.classes, 4, 1)
    assert torch.equal(few.train[2][0], every.train.dataset[few.train.indices[2]][0])
    assert few.about["images_per_class"] == 4


def test_what_is_read_is_what_the_sources_own_function_reads() -> None:
    found: Any = load_data(options(source="digits", size=8, validation=0.2), seed=3)
    own: Any = digits(8, 0.2, 3)
    assert (found.train.indices, found.validation.indices) == (own.train.indices, own.validation.indices)


def test_the_default_share_is_the_same_everywhere() -> None:
    chosen = options(source="digits", size=8)
    assert chosen.validation == 0.1
    found: Any = load_data(chosen, seed=0)
    assert found.validation.indices == digits(8).validation.indices  # type: ignore[attr-defined]


def test_progress_of_a_folder_counts_its_images(tmp_path: Any) -> None:
    seen: list[tuple[int, int]] = []
    chosen = options(source="folder", path=str(photos(tmp_path)), size=8)
    load_data(chosen, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


@pytest.mark.parametrize("source", [name for name, source in SOURCES.items() if source.needs_path])
def test_a_path_that_is_missing_is_asked_for(source: str) -> None:
    with pytest.raises(InputError, match=f"data.path is missing, and source {source} .* pass --data PATH"):
        load_data(options(source=source, size=8), seed=0)


@pytest.mark.parametrize(
    ("data", "source", "expected"),
    [
        ("digits", None, ("digits", None)),
        ("digits", "digits", ("digits", None)),
        ("photos", None, ("folder", "photos")),
        ("photos", "folder", ("folder", "photos")),
        ("photos", "cifar10", ("cifar10", "photos")),
        ("hf://someone/photos", None, ("parquet", "hf://someone/photos")),
        ("cifar10", None, ("folder", "cifar10")),
        ("cifar10", "cifar10", ("cifar10", "cifar10")),
        ("./digits", None, ("folder", "./digits")),
    ],
)
def test_data_of_a_command_is_a_source_or_a_path(data: str, source: str | None, expected: Any) -> None:
    assert parse_data(data, source) == expected


@pytest.mark.parametrize(
    ("data", "source", "message"),
    [
        ("photos", "foldr", "unknown data source 'foldr'; did you mean 'folder'"),
        ("photos", "digits", "source digits needs no path, but the data is 'photos'; source folder reads a path"),
        ("digits", "cifar10", "source cifar10 reads images from a path, but the data is 'digits', another source"),
    ],
)
def test_a_source_that_does_not_fit_the_data_is_refused(data: str, source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_data(data, source)


def test_the_registry_and_the_options_load_no_torch() -> None:
    code = "import sys, prune_fe.data.registry, prune_fe.data.options; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
