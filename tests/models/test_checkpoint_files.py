"""Files of weights: several files with an index, arguments beside the weights, and whole networks in a pickle."""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prune_fe.errors import CheckpointError
from prune_fe.models.checkpoint_files import read_content
from prune_fe.models.checkpoints import load_weights
from prune_fe.models.small_vgg import SmallVGG


def write_parts(folder: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    """Write a state dict as two safetensors files with an index, as the Hugging Face hub has them."""
    names, files = list(state), dict[str, str]()
    for number, part in enumerate((names[:3], names[3:]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({key: state[key] for key in part}, folder / name)
        files |= dict.fromkeys(part, name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files | changes}))
    return index


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    source, model = SmallVGG(4, 3, [[4]]), SmallVGG(4, 3, [[4]])
    load_weights(model, write_parts(tmp_path, source.state_dict()))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())


def test_one_part_alone_names_the_index(tmp_path: Path) -> None:
    write_parts(tmp_path, SmallVGG(4, 3, [[4]]).state_dict())
    with pytest.raises(CheckpointError, match=r"one part .* give the index of all parts, .*model\.safetensors\.index"):
        load_weights(SmallVGG(4, 3, [[4]]), tmp_path / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"more": "model-00002-of-00002.safetensors"}, "'more' is not in model-00002-of-00002.safetensors"),
        ({"more": "other.safetensors"}, "other.safetensors: no such file"),
        ({"more": "../x.safetensors"}, r"names '\.\./x\.safetensors' as a part; parts are files next to the index"),
        ({"more": "model.safetensors.index.json"}, "names 'model.safetensors.index.json' as a part"),
        ({"more": "a.bin"}, "a.bin: holds no state dict"),
        ({"more": 3}, "not an index of files with weights"),
    ],
)
def test_an_index_that_is_wrong_is_explained(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    torch.save([1], tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=text):
        read_content(write_parts(tmp_path, SmallVGG(4, 3, [[4]]).state_dict(), **changes))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": [1]}', "[" * 10**5, "\0"])
def test_an_index_of_any_content_is_refused(tmp_path: Path, content: str) -> None:
    index = tmp_path / "a.index.json"
    index.write_text(content)
    with pytest.raises(CheckpointError, match="not an index of files with weights"):
        read_content(index)
    with pytest.raises(CheckpointError, match=r"b\.index\.json: no such file"):
        read_content(tmp_path / "b.index.json")


def test_arguments_of_a_training_script_are_no_hindrance(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pth")
    assert read_content(tmp_path / "a.pth")["args"].lr == 0.1


@pytest.mark.parametrize("key", [None, "model"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_three_lines_make_a_state_dict_of_a_whole_network(tmp_path: Path, key: str | None, protocol: int) -> None:
    source, model = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 4, 1))
    content = source if key is None else {"epoch": 3, "args": argparse.Namespace(), key: source}
    torch.save(content, tmp_path / "net.pth", pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match="which is not run; .* if you trust the file, three lines") as caught:
        load_weights(model, tmp_path / "net.pth")
    assert "\n" not in str(caught.value)
    lines = str(caught.value).partition("state dict of it: ")[2]
    assert lines.count("; ") == 2
    subprocess.run(shlex.join([sys.executable, "-c", lines]), shell=True, check=True, cwd=tmp_path)
    load_weights(model, tmp_path / "net-state.pth")
    assert torch.equal(model.state_dict()["0.weight"], source.state_dict()["0.weight"])


def test_a_pickle_of_something_else_gets_no_such_advice(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "path": tmp_path}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"names pathlib\.\S+, which is not run; .*alone\)$"):
        read_content(tmp_path / "a.pth")
