"""Weights from files: found however they are wrapped, refused when they do not fit, and never executed."""

import copy
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prune_fe.errors import CheckpointError
from prune_fe.models.checkpoints import STATE_KEYS, load_weights, read_checkpoint, save_weights
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


def summary_of(content: Any, path: Path, expected: nn.Module | None = None) -> str | None:
    """Write a file, read it into a network, check the weights, and return the line about it without the path."""
    torch.save(content, path)
    model = SmallVGG(4, 3, [[4]])
    checkpoint = read_checkpoint(path, model.state_dict().keys())
    assert load_weights(model, checkpoint) == []
    source = STATE if expected is None else expected.state_dict()
    assert all(torch.equal(value, source[key]) for key, value in model.state_dict().items())
    summary = checkpoint.summary
    return None if summary is None else summary.removeprefix(f"{path}: ")


STATE = SmallVGG(4, 3, [[4]]).state_dict()


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in STATE.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "backbone.", "net.", "module._orig_mod.", "_orig_mod.module."),
        *("model.net.", "module.model.backbone.", "net.net."),
    ],
)
def test_prefixes_are_taken_off_and_said(tmp_path: Path, prefix: str) -> None:
    assert summary_of(prefixed(prefix), tmp_path / "a.pth") == f"read without {prefix!r} in its names"


def test_parts_of_the_network_may_have_been_wrapped(tmp_path: Path) -> None:
    state = {key.replace("features.", "features.module."): value for key, value in STATE.items()}
    assert summary_of(state, tmp_path / "a.pth") == "read without 'module.' in its names"
    state = {f"net.{key.replace('features.', 'features._orig_mod.')}": value for key, value in STATE.items()}
    assert summary_of(state, tmp_path / "a.pth") == "read without 'net.' and '_orig_mod.' in its names"


def test_a_prefix_that_the_network_has_itself_is_left(tmp_path: Path) -> None:
    inner = nn.ModuleDict({"conv": nn.Linear(2, 2), "model": nn.ModuleDict({"conv": nn.Linear(2, 2)})})
    for state in (inner.state_dict(), {f"model.{key}": value for key, value in inner.state_dict().items()}):
        torch.save(state, tmp_path / "a.pth")
        model = copy.deepcopy(inner)
        for weight in model.parameters():
            weight.data.zero_()
        load_weights(model, tmp_path / "a.pth")
        assert all(torch.equal(value, inner.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("key", [*STATE_KEYS, "whatever"])
def test_a_state_dict_is_found_beside_other_entries_which_are_named(tmp_path: Path, key: str) -> None:
    optimizer = torch.optim.SGD(SmallVGG(4, 3, [[4]]).parameters(), lr=0.1, momentum=0.9).state_dict()
    content = {"epoch": 3, "optimizer": optimizer, key: STATE, "best": torch.ones(())}
    if key == "whatever":  # The only entry with weights, if nothing else is a tensor.
        del content["best"]
    beside = "epoch, optimizer" + ", best" * ("best" in content)
    assert summary_of(content, tmp_path / "a.pth") == f"read; ignored are {beside}"


def test_of_several_state_dicts_the_first_kind_is_read(tmp_path: Path) -> None:
    other = {key: value + 1 for key, value in STATE.items()}
    ema = {"n_averaged": torch.ones(()), **{f"module.{key}": value for key, value in other.items()}}
    assert summary_of({"model_ema": ema, "model": STATE}, tmp_path / "a.pth") == "read; ignored are model_ema"
    content = {"ema": {"state_dict": prefixed("module.") | {"n_averaged": torch.ones(())}}, "model": {"name": "vgg"}}
    expected = "read without 'module.' in its names; ignored are model, n_averaged"
    assert summary_of(content, tmp_path / "a.pth") == expected


def test_weights_of_something_else_and_counters_are_ignored_by_name(tmp_path: Path) -> None:
    more = {
        "criterion.weight": torch.ones(4),
        "model.total_ops": torch.ones(1),
        "model.features.1.total_ops": torch.ones(1),
    }
    summary = summary_of({"state_dict": prefixed("model.") | more, "lightning": "2"}, tmp_path / "a.ckpt")
    assert summary == (
        "read without 'model.' in its names; ignored are lightning, criterion.weight, total_ops, features.1.total_ops"
    )
    mixed = {**STATE, "epoch": 3, "classes": ["a", "b", "c", "d"]}
    assert summary_of(mixed, tmp_path / "a.pth") == "read; ignored are epoch"


def test_norms_of_earlier_files_have_no_counter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, model = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
    state = {key: value for key, value in source.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth", model.state_dict().keys())
    assert checkpoint.summary == f"{tmp_path / 'a.pth'}: read; num_batches_tracked is missing and begins at 0"
    load_weights(model, checkpoint)
    assert torch.equal(model.state_dict()["0.weight"], source.state_dict()["0.weight"])
    assert model.state_dict()["1.num_batches_tracked"] == 0
    untracked = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    torch.save(untracked.state_dict() | {"1.num_batches_tracked": torch.ones(())}, tmp_path / "a.pth")
    load_weights(untracked, tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        ({"classes": ["b", "a"]}, ("b", "a")),
        ({"class_names": ("b", "a")}, ("b", "a")),
        ({"class_to_idx": {"a": 1, "b": 0}}, ("b", "a")),
        ({"idx_to_class": {1: "a", 0: "b"}}, ("b", "a")),
        ({"classes": 2, "class_names": ["b", "a"]}, ("b", "a")),
        *(
            ({"classes": value}, None)
            for value in (2, [], [1, 2], "ab", {"a": 1, "b": 2}, {"a": "b"}, {"a": [0]}, None)
        ),
    ],
)
def test_classes_are_read_and_what_is_none_is_ignored_by_name(tmp_path: Path, content: Any, classes: Any) -> None:
    for flat in (False, True):
        torch.save((STATE if flat else {"state_dict": STATE}) | content, tmp_path / "a.pth")
        checkpoint = read_checkpoint(tmp_path / "a.pth", STATE.keys())
        assert checkpoint.classes == classes
        unused = classes is None or content.get("classes") == 2
        assert checkpoint.ignored == (("classes",) if unused else ())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({}, r"holds no state dict \(its keys are none\)"),
        ({"epoch": 3, "lr": 0.1}, r"holds no state dict \(its keys are 'epoch', 'lr'\)"),
        ([1], r"holds no state dict \(it is a list\)"),
        ({"model": {"net": {"model": {"net": {"model": STATE}}}}}, "4 dicts in each other"),
        ({"one": STATE, "two": STATE}, r"holds no state dict \(its keys are 'one', 'two'\)"),
        ({"state_dict": prefixed("encoder.")}, "'features.0.weight' is missing"),
    ],
)
def test_a_file_without_the_weights_is_explained(tmp_path: Path, content: Any, text: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=text):
        load_weights(SmallVGG(4, 3, [[4]]), tmp_path / "a.pth")


def test_a_dict_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    for more in ({}, {"weight": torch.ones(1)}):
        content |= more
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match="holds no state dict"):
            load_weights(SmallVGG(4, 3, [[4]]), tmp_path / "a.pth")


class WithExtra(nn.Linear):
    """A layer that keeps something in its state dict that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"calls": 3}


def test_a_network_keeps_its_own_state_that_is_no_tensor(tmp_path: Path) -> None:
    source, model = WithExtra(2, 2), WithExtra(2, 2)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth", model.state_dict().keys())
    assert checkpoint.ignored == ("_extra_state",)
    load_weights(model, checkpoint)
    assert torch.equal(model.weight, source.weight)


def test_half_precision_is_read_into_the_type_of_the_network(tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in STATE.items()}, tmp_path / "a.pth")
    model = SmallVGG(4, 3, [[4]])
    load_weights(model, tmp_path / "a.pth")
    assert model.state_dict()["classifier.weight"].dtype == torch.float32


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
    with pytest.raises(
        CheckpointError, match=r"it is a pickle that names pathlib\.Path\.touch, pathlib\.PosixPath, which is not run"
    ):
        load_weights(SmallVGG(4, 3, [[4]]), tmp_path / "bare.pth")
    with pytest.raises(
        CheckpointError, match=r"that names __builtin__\.getattr, pathlib.*Path, which is not run; save a"
    ):
        load_weights(SmallVGG(4, 3, [[4]]), tmp_path / "evil.pth")
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


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.pth", b"<!doctype html>", r"\(it is an HTML page"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1", r"\(it is a Git LFS pointer"),
        ("a.pth", b"\x1f\x8b\x08", r"\(it is a gzip file; unpack it first\)"),
        ("a.pth", b"", r"\(it is empty\)"),
        ("a.safetensors", b"", r"\(it is empty\)"),
    ],
)
def test_it_is_said_what_a_file_is(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=text) as caught:
        load_weights(SmallVGG(), tmp_path / name)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torchs_own_formats_under_other_names_are_named(tmp_path: Path) -> None:
    state = SmallVGG(4, 3, [[4]]).state_dict()
    save_file(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.safetensors")
    with pytest.warns((DeprecationWarning, FutureWarning), match="deprecated"):
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "c.pth")
    torch.save(SmallVGG(4, 3, [[4]]), tmp_path / "d.pth")
    for name, text in (
        ("a.pth", r"\(it is a safetensors file; call it NAME\.safetensors\)"),
        ("b.safetensors", r"\(it is a file of torch\.save; call it NAME\.pth\)"),
        ("c.pth", r"\(it is a TorchScript program; save its state_dict\(\) with torch\.save\)"),
        ("d.pth", r"names prune_fe\.models\.SmallVGG, .*which is not run; save a network's state_dict\(\) alone\)"),
    ):
        with pytest.raises(CheckpointError, match=text) as caught:
            load_weights(SmallVGG(4, 3, [[4]]), tmp_path / name)
        # Torch's own advice is not repeated; ours for a whole network follows.
        assert "weights_only" not in str(caught.value).partition("It holds a whole network")[0]


@pytest.mark.parametrize("own", [False, True], ids=["torch.save", "save_weights"])
def test_every_flipped_bit_is_found_or_harmless(tmp_path: Path, own: bool) -> None:
    source = SmallVGG(4, 3, [[8]])
    path = tmp_path / "weights.pth"
    save_weights(source, path) if own else torch.save(source.state_dict(), path)
    whole, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(150):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        model = SmallVGG(4, 3, [[8]])
        try:
            load_weights(model, path)
        except CheckpointError:
            refused += 1
        else:
            state = model.state_dict()
            assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items())
    # Between the members of torch's zip files there are bytes that mean nothing; the seal covers them too.
    assert refused >= (145 if own else 75)


def test_a_sealed_file_is_read_by_torch_and_safe_tools(tmp_path: Path) -> None:
    source = SmallVGG(4, 3, [[4]])
    save_weights(source, tmp_path / "weights.pth")
    for mmap in (False, True):
        state = torch.load(tmp_path / "weights.pth", weights_only=True, mmap=mmap)
        assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items())


def test_a_key_that_is_there_with_and_without_module_is_refused(tmp_path: Path) -> None:
    state = SmallVGG(4, 3, [[4]]).state_dict()
    torch.save({**state, "module.classifier.bias": torch.ones(4)}, tmp_path / "weights.pth")
    text = r"'classifier\.bias' is there twice, as 'classifier\.bias' and as 'module\.classifier\.bias'"
    with pytest.raises(CheckpointError, match=text):
        load_weights(SmallVGG(4, 3, [[4]]), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor([1.0, float("nan"), 0, 0]), r"'classifier\.bias' holds 1 NaN or infinite values of 4"),
        (torch.tensor([1.0, float("inf"), 0, 0]), r"'classifier\.bias' holds 1 NaN or infinite values of 4"),
        (torch.ones(4, dtype=torch.complex64), r"'classifier\.bias' is complex"),
        (torch.ones(4, device="meta"), r"'classifier\.bias' has no values: it is on the meta device"),
        (torch.ones(4, dtype=torch.int64), r"'classifier\.bias' is torch\.int64, the model has torch\.float32"),
    ],
)
def test_a_weight_that_is_no_finite_real_number_is_refused(tmp_path: Path, value: Tensor, text: str) -> None:
    torch.save(changed(**{"classifier.bias": value}), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=text):
        load_weights(SmallVGG(4, 3, [[4]]), tmp_path / "weights.pth")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    for name in ("pipe.pth", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(CheckpointError, match=rf"{name}: .*\(not a regular file\)"):
            load_weights(SmallVGG(), tmp_path / name)


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint that can be read safely"):
        load_weights(SmallVGG(), tmp_path)
