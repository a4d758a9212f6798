"""prune-fe export."""

import json
from pathlib import Path

import torch

from prune_fe.cli.app import main
from prune_fe.models.saved import load
from tests.cli.helpers import names, refused


def test_the_file_computes_what_the_network_does(done, capsys):
    trained = done[1] / "seed-0" / "trained"
    threads = torch.get_num_threads()
    words = ["export", "--model", str(trained), "--format", "torch-export"]
    assert main([*words, "--threads", str(threads), "--json"]) == 0
    printed = capsys.readouterr()
    assert "trained.pt2" in printed.err
    content = json.loads(printed.out)
    assert (content["output"], content["bytes"]) == ("trained.pt2", Path("trained.pt2").stat().st_size)
    images = torch.randn(3, 1, 16, 16)
    exported = torch.export.load("trained.pt2").module()
    torch.testing.assert_close(exported(images), load(trained)(images))
    assert "trained.pt2 exists already" in refused(
        capsys, 2, "export", "--model", trained, "--format", "torch-export", "--output", "trained.pt2"
    )


def test_an_unknown_format_is_refused(capsys):
    assert "--format" in refused(capsys, 2, "export", "--model", "vgg-small", "--format", "tflite")
    assert names(".") == []
