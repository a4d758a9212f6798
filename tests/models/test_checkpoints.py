"""Weights from files: found however they are wrapped, refused when they do not fit, and never executed."""

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prune_fe.errors import CheckpointError
from prune_fe.models.checkpoints import load_weights
from prune_fe.models.small_vgg import SmallVGG
from tests.models.networks import Evil, images, outputs


def test_a_state_dict_is_found_however_it_is_wrapped(tmp_path: Path) -> None:
    source = SmallVGG(4, 3, [[4]])
    state = source.state_dict()
    for number, found in enumerate(
        [
            state,
            {"state_dict": state, "epoch": 3},
            {"model": state},
            {f"module.{key}": value for key, value in state.items()},
            {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        ]
    ):
        torch.save(found, tmp_path / "weights.pth")
        model = SmallVGG(4, 3, [[4]])
        load_weights(model, tmp_path / "weights.pth")
        assert torch.equal(outputs(model, images(8)), outputs(source, images(8))), number


def test_a_child_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    source, model = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_safetensors_are_read(tmp_path: Path) -> None:
    source, model = SmallVGG(4, 3, [[4]]), SmallVGG(4, 3, [[4]])
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_weights(model, tmp_path / "weights.safetensors")
    assert torch.equal(outputs(model, images(8)), outputs(source, images(8)))


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    state: dict[str, Any] = SmallVGG(4, 3, [[4]]).state_dict() | changes
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (changed(**{"classifier.bias": None}), "'classifier.bias' is missing; it is a checkpoint of another model"),
        (changed(**{"classifier.bias": torch.zeros(5)}), r"'classifier.bias' is \(5,\), the model has \(4,\)"),
        (changed(fc=torch.zeros(1)), "'fc' is not in the model; it is a checkpoint of another model"),
        ({"classifier.bias": 3}, "holds no state dict"),
        ([torch.zeros(2)], "holds no state dict"),
        ({1: torch.zeros(2)}, "'features.0.weight' is missing"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_and_the_model_stays(tmp_path: Path, content: Any, text: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    model = SmallVGG(4, 3, [[4]])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=text):
        load_weights(model, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_malicious_pickle_is_refused_and_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    touched = tmp_path / "touched"
    torch.save({"state_dict": Evil(touched)}, tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Evil(touched)))
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Evil(touched)))
    for name in ("evil.pth", "bare.pth", "evil.safetensors"):
        with pytest.raises(CheckpointError, match="not a checkpoint that can be read safely"):
            load_weights(SmallVGG(4, 3, [[4]]), tmp_path / name)
    assert not touched.exists()
    pickle.loads((tmp_path / "bare.pth").read_bytes())
    assert touched.exists(), "the trap of this test does not work"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, suffix: str) -> None:
    state = SmallVGG(4, 3, [[4]]).state_dict()
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save_file(state, whole) if suffix == ".safetensors" else torch.save(state, whole)
    content = whole.read_bytes()
    for length in [0, 1, 7, 8, 9, *random.Random(0).sample(range(10, len(content) - 1), 60), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=rf"cut{suffix}: "):
            load_weights(SmallVGG(4, 3, [[4]]), cut)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing.pth: no such file"):
        load_weights(SmallVGG(), tmp_path / "nothing.pth")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint that can be read safely"):
        load_weights(SmallVGG(), tmp_path)
