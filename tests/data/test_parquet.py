"""Parquet files: columns, parts and labels, and what is said when they are missing."""

from pathlib import Path
from typing import Any

import pytest

from prune_fe.data.registry import load_data
from prune_fe.errors import DataError, InputError
from tests.data.containers import write_parquet
from tests.data.pictures import photos

datasets = pytest.importorskip("datasets")


def write(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns).to_parquet(str(path))


def load(path: Path | str, **settings: Any) -> Any:
    return load_data(source="parquet", path=str(path), size=8, **settings)


@pytest.fixture
def contents(tmp_path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(photos(tmp_path / "photos").rglob("*.png"))]


def test_columns_and_parts_can_be_named_and_labels_can_be_names(tmp_path: Path, contents: list[bytes]) -> None:
    cells = [{"bytes": content, "path": None} for content in contents]
    for part, chosen in (("train", slice(0, 8)), ("test", slice(8, 12))):
        columns = {"picture": cells[chosen], "kind": (["owl", "ant"] * 6)[chosen]}
        write(tmp_path / "set" / f"{part}.parquet", columns)
    with pytest.raises(DataError, match=r"which columns hold images and labels\? There are picture, kind; name them"):
        load(tmp_path / "set")
    splits = load(tmp_path / "set", columns=("picture", "kind"))
    assert splits.classes == ("ant", "owl")
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (8, 4)
    assert list(splits.test.names) == ["1", "3", "0", "2"]
    with pytest.raises(DataError, match="no column 'sort'; there are picture, kind"):
        load(tmp_path / "set", columns=("picture", "sort"))
    with pytest.raises(DataError, match="row 0 of 'kind' holds no image"):
        load(tmp_path / "set", columns=("kind", "kind"))


def test_test_images_without_labels_are_passed_over_and_unread_parts_are_named(
    tmp_path: Path, contents: list[bytes]
) -> None:
    cells = [{"bytes": content, "path": None} for content in contents]
    parts = {"train": [0, 1] * 4, "validation": [0, 1, 0, 1], "test": [-1] * 4}
    for part, labels in parts.items():
        write(tmp_path / "set" / f"{part}.parquet", {"image": cells[-len(labels) :], "label": labels})
    first = cells[: len(parts["train"])]
    write(tmp_path / "set" / "train.parquet", {"image": first, "label": parts["train"]})
    with pytest.warns(UserWarning, match=r"test is not read \(data\.splits names parts\)"):
        assert len(load(tmp_path / "set").test) == 4
    with pytest.raises(DataError, match="column 'label' holds -1"):
        load(tmp_path / "set", splits=("train", "test"))
    with pytest.raises(DataError, match="no part 'dev'; there are"):
        load(tmp_path / "set", splits=("train", "dev"))


def test_images_that_are_not_in_the_file_are_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        cells = [{"bytes": None, "path": "/etc/passwd"}] * 4
        features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
        features["label"] = datasets.Value("int64")
        (tmp_path / "set").mkdir(exist_ok=True)
        rows = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 0, 1]}, features=features)
        rows.to_parquet(str(tmp_path / "set" / f"{part}.parquet"))
    with pytest.raises(DataError, match="row 0 of 'image' holds no image; files beside parquet are not read"):
        load(tmp_path / "set")


def test_what_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no such folder or file; hf://OWNER/NAME is a data set on the Hugging Face hub"
    ):
        load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no .parquet files there"):
        load(tmp_path / "empty")
    path = write_parquet(photos(tmp_path / "photos"), tmp_path / "set")
    (path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="set: not parquet files that can be read"):
        load(path)
    with pytest.raises(InputError, match="is on the Hugging Face hub, which source parquet reads"):
        load_data(source="folder", path="hf://someone/photos", size=8)
