"""Fixtures of the tests of the commands."""

import functools
import io
import sys

import pytest
from PIL import Image

from prune_fe.cli.app import main
from prune_fe.measure.cost import speed
from tests.cli.helpers import TINY


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    """In an empty folder, with short timings of images/s."""
    quick = functools.partial(speed, seconds=0.01)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prune_fe.measure.cost.speed", quick)
    monkeypatch.setattr("prune_fe.experiment.steps.speed", quick)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(what was printed, the run folder) of a whole tiny run."""
    place = tmp_path_factory.mktemp("done")
    (place / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        out = io.StringIO()
        patch.setattr(sys, "stdout", out)
        assert main(["run", "tiny.yaml"]) == 0
    return out.getvalue(), place / "runs" / "tiny-1"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture
def photos(tmp_path):
    """Two classes of red and blue images."""
    for part, count in (("train", 6), ("val", 2)):
        for name, color in (("<script>", (255, 0, 0)), ("=cmd", (0, 0, 255))):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for number in range(count):
                # Each image is another one, since test images must not be training images.
                shade = (color[0], 10 * number + count, color[2])
                Image.new("RGB", (20, 20), shade).save(tmp_path / "photos" / part / name / f"{number}.png")
    return tmp_path / "photos"
