"""What is refused before any work."""

from pathlib import Path

import pytest

from tests.cli.helpers import refused


@pytest.mark.parametrize(
    ("code", "output", "message"),
    [
        (2, "there", "there exists already; choose another --output"),
        (5, "file/x", "is not a folder that can be written"),
    ],
)
@pytest.mark.parametrize(
    "words", [["score", "--data", "digits"], ["prune", "--scores", "s"], ["finetune", "--data", "digits"]]
)
def test_an_output_that_cannot_be_is_refused_before_any_work(monkeypatch, capsys, words, code, output, message):
    for command in ("score", "prune", "finetune"):
        monkeypatch.setattr(f"prune_fe.cli.{command}.load", lambda *_: pytest.fail("work was begun"))
    Path("there").mkdir()
    Path("there/mine").touch()
    Path("file").touch()
    assert message in refused(capsys, code, *words, "--model", "vgg-small", "--output", output)
