"""What the tests of the commands share."""

from pathlib import Path

from prune_fe.cli.app import main

TINY = """
name: tiny
data: {source: digits, size: 16}
model: {name: vgg-small, arguments: {stages: [[4], [4]]}}
train: {lr: 0.05, schedule: cosine, epochs: 1, batch_size: 64}
score: {samples: 5}
scorers: [l1-filter, feature-entropy]
finetune: {lr: 0.01, schedule: cosine, epochs: 1, batch_size: 64}
device: cpu
"""
FOLDER = TINY.replace("source: digits", "source: folder")


def refused(capsys, code, *words):
    """The one line on stderr with which the command ends."""
    assert main([*map(str, words)]) == code
    line, *rest = capsys.readouterr().err.splitlines()
    assert rest == []
    assert line.startswith("prune-fe: ")
    return line.removeprefix("prune-fe: ")


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def scored(*words):
    base = ["score", "--model", "vgg-small", "--data", "digits", "--size", "16", "-b", "7"]
    return main([*base, *([] if "--samples" in words else ["--samples", "2"]), *map(str, words)])
