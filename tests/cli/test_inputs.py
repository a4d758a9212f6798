"""What is refused before any work."""

from pathlib import Path

import pytest

from prune_fe.io import claimed
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


@pytest.mark.parametrize("words", [["prune", "--scores", "s"], ["finetune", "--data", "digits"], ["export"]])
def test_an_output_that_another_process_writes_is_refused_before_any_work(monkeypatch, capsys, words):
    monkeypatch.setattr(f"prune_fe.cli.{words[0]}.load", lambda *_, **__: pytest.fail("work was begun"))
    output = Path("deep/out.onnx")
    with claimed(output):
        message = refused(capsys, 5, *words, "--model", "vgg-small", "--output", output)
    assert message.startswith("deep/out.onnx is in use by another run (process ")
    assert not Path("deep").exists()
