"""prune-fe inspect."""

import csv
import json
from pathlib import Path

from prune_fe.cli.app import main
from prune_fe.models.saved import load
from tests.cli.helpers import names, refused


def test_a_network_by_name_needs_no_data_and_no_flag(capsys, tmp_path):
    assert main(["inspect", "vgg-small", "--size", "32", "--num-classes", "10"]) == 0
    printed = capsys.readouterr().out
    assert "vgg-small on images of 3×32×32" in printed
    assert "can be" in printed
    assert "cannot be removed (the network's outputs): classifier" in printed
    assert names(tmp_path) == []


def test_a_saved_network_is_known_by_its_folder_and_the_table_is_written(done, capsys):
    trained = done[1] / "seed-0" / "trained"
    for name in ("layers.csv", "layers.json"):
        assert main(["inspect", "--model", str(trained), "--output", name, "--json"]) == 0
        printed = capsys.readouterr()
    assert "on images of 1×16×16" in printed.err
    assert json.loads(printed.out) == json.loads(Path("layers.json").read_text()) | {"output": "layers.json"}
    rows = list(csv.DictReader(Path("layers.csv").read_text().splitlines()))
    content = json.loads(Path("layers.json").read_text())
    assert (content["model"], content["image"]) == (str(trained), [1, 16, 16])
    assert [row["layer"] for row in rows] == [row["layer"] for row in content["layers"]]
    parameters = sum(weight.numel() for weight in load(trained).parameters())
    assert sum(row["parameters"] for row in content["layers"]) == parameters
    assert {row["units"] for row in content["layers"]} == {4, None, 10}
    assert "layers.csv exists already" in refused(capsys, 2, "inspect", trained, "--output", "layers.csv")


def test_another_kind_of_file_and_no_model_are_refused(capsys, tmp_path):
    message = refused(capsys, 2, "inspect", "vgg-small", "--output", "layers.txt")
    assert message == "--output layers.txt: allowed are names that end in .csv or .json"
    assert "requires an argument" in refused(capsys, 2, "inspect")
    assert names(tmp_path) == []
