"""prune-fe sensitivity, and prune-fe prune --ratio auto."""

import json
from pathlib import Path

import pandas as pd
import pytest

from prune_fe.cli.app import main
from prune_fe.models.saved import load
from prune_fe.pruning import sensitivity as module
from prune_fe.pruning.loss_curves import load_sensitivity
from tests.cli.helpers import names, refused


@pytest.fixture
def trained(done):
    return str(done[1] / "seed-0" / "trained")


def words(trained, *more):
    base = ["sensitivity", "--model", trained, "--data", "digits", "--scores", "scores", "--ratios", "0.25", "0.5"]
    return [*base, *map(str, more)]


def test_curves_are_measured_once_and_spread_a_target(trained, capsys, monkeypatch):
    assert main(["score", "--model", trained, "--scorer", "l1-filter"]) == 0
    assert main(words(trained)) == 0
    printed = capsys.readouterr().out
    assert "note: the network has batch norms, and the groups are measured without recalibration" in printed
    assert "accuracy when one group of layers alone loses units" in " ".join(printed.split())
    assert "--ratio auto --target-macs 0.5 --sensitivity sensitivity" in printed
    assert [name for name in names("sensitivity") if name[0] != "."] == [
        "env.json",
        "sensitivity.csv",
        "sensitivity.json",
        "sensitivity.svg",
    ]
    table = pd.read_csv("sensitivity/sensitivity.csv")
    assert table["ratio"].tolist() == [0.25, 0.5] * 2
    assert table["layers"].unique().tolist() == ["features.0", "features.4"]
    found = load_sensitivity("sensitivity")
    assert 100 < found.images < 200  # a tenth of the training images
    assert f"accuracy on {found.images} held-out images" in " ".join(printed.split())
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", None)  # nothing is measured again
        assert main(words(trained, "--json")) == 0
    printed = capsys.readouterr()
    assert "sensitivity exists already; it is used again if nothing has changed" in printed.err
    content = json.loads(printed.out)
    assert (content["images"], content["accuracy"]) == (found.images, found.accuracy)
    assert [row["ratio"] for row in content["groups"]] == [0.25, 0.5] * 2
    prune = ["prune", "--model", trained, "--scores", "scores", "--ratio", "auto"]
    assert main([*prune, "--target-params", "0.6", "--sensitivity", "sensitivity"]) == 0
    printed = capsys.readouterr().out
    assert "note: ratio: auto: a loss of" in printed
    assert load("pruned") is not None
    again = words(trained, "--output", "recalibrated", "--recalibrate", "50")
    assert main(again) == 0
    assert "without recalibration" not in capsys.readouterr().out
    assert load_sensitivity("recalibrated").about["recovery"].startswith("batch norms on 50 images, seed 0, of ")
    assert "--recalibrate 5000: there are" in refused(capsys, 3, *again[:-1], "5000")
    assert refused(capsys, 2, *words(trained, "--ratios", "0.75")).startswith(
        "sensitivity holds a measurement with another choice of ratios"
    )


def test_what_does_not_fit_is_refused_before_anything_is_read(trained, capsys):
    prune = ["prune", "--model", trained, "--scores", "none"]
    auto = [*prune, "--ratio", "auto", "--target-macs", "0.5"]
    assert refused(capsys, 2, *auto) == "--ratio auto needs --sensitivity FOLDER, which prune-fe sensitivity writes"
    assert "--sensitivity has no effect without --ratio auto;" in refused(capsys, 2, *prune, "--sensitivity", "x")
    assert "ratio: auto needs a target" in refused(capsys, 2, *prune, "--ratio", "auto")
    assert refused(capsys, 4, *words(trained)) == "scores/scores.npz: no such file; Scores.save writes one"
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    assert refused(capsys, 2, *words(trained, "--output", "mine")) == "mine exists already; choose another --output"
    message = refused(capsys, 2, *words(trained, "--ratios", "1.5"))
    assert message == "--ratios.2: input should be less than 1 (got 1.5)"
    assert names(".") == ["mine"]
