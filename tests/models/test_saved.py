"""Save and load: the same bits back, whole or not at all, and nothing else is overwritten."""

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import prune_fe
from prune_fe.errors import CheckpointError, EnvironmentFault, InputError
from prune_fe.models.build import build
from prune_fe.models.saved import build_original, load, save
from prune_fe.models.small_vgg import SmallVGG
from tests.models.networks import Own, alive, images, outputs, shapes


def classes(path: Path) -> int:
    model = load(path)
    assert isinstance(model, SmallVGG)
    return model.get_parameter("classifier.bias").numel()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vgg-small", 16),
        ("alexnet", 64),
        ("resnet18", 32),
        ("mobilenet_v2", 32),
        ("timm/resnet10t", 32),
        ("timm/efficientnet_lite0", 32),
    ],
)
def test_a_pruned_network_comes_back_to_the_bit(tmp_path: Path, name: str, size: int) -> None:
    model, example = alive(build(name, 6)), images(size)
    scores = prune_fe.score(model, None, "l1-filter", example=example)
    pruned = prune_fe.prune(model, scores, 0.7, example).model
    back = load(save(pruned, tmp_path / "model"))
    assert torch.equal(outputs(back, example), outputs(pruned, example))
    assert repr(back) == repr(pruned)
    assert prune_fe.cost(back, example) == prune_fe.cost(pruned, example) != prune_fe.cost(model, example)


def test_a_network_that_was_loaded_can_be_pruned_and_saved_again(tmp_path: Path) -> None:
    example = images(16)
    model = load(save(alive(build("vgg-small", 6)), tmp_path / "one"))
    for name in ("two", "three"):
        scores = prune_fe.score(model, None, "l1-filter", example=example)
        pruned = prune_fe.prune(model, scores, 0.3, example).model
        model = load(save(pruned, tmp_path / name))
        assert torch.equal(outputs(model, example), outputs(pruned, example))


def test_a_users_own_network_comes_back_into_a_fresh_one(tmp_path: Path) -> None:
    model, example = alive(Own()), images(16)
    scores = prune_fe.score(model, None, "l1-filter", example=example)
    pruned: Any = prune_fe.prune(model, scores, 0.5, example).model
    save(pruned, tmp_path / "own")
    fresh = Own()
    fresh.device_name = "another"
    back: Any = load(tmp_path / "own", model=fresh)
    assert back is fresh
    assert torch.equal(outputs(back, example), outputs(pruned, example))
    assert (back.first.out_channels, back.norm.num_features, back.head.in_features) == (4, 4, 4)
    assert back.device_name == "another"


def test_without_a_fresh_one_it_is_said_what_to_do(tmp_path: Path) -> None:
    save(Own(), tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"own holds a .*Own: build one and pass load\(path, model=\.\.\.\)"):
        load(tmp_path / "own")


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: SmallVGG(5, 3, [[8], [8]]), "module 'first' is not in SmallVGG; another architecture"),
        (nn.Sequential, "module 'first' is not in Sequential; another architecture"),
    ],
)
def test_a_fresh_network_of_another_kind_is_refused(tmp_path: Path, other: Callable[[], nn.Module], text: str) -> None:
    save(Own(), tmp_path / "own")
    with pytest.raises(CheckpointError, match=text):
        load(tmp_path / "own", model=other())


def test_a_fresh_network_with_another_buffer_is_refused(tmp_path: Path) -> None:
    save(Own(), tmp_path / "own")
    fresh = Own()
    fresh.register_buffer("more", torch.zeros(1))
    with pytest.raises(CheckpointError, match="'more' is only in the model; another architecture"):
        load(tmp_path / "own", model=fresh)


def test_frozen_weights_come_back_frozen_and_the_others_not(tmp_path: Path) -> None:
    model: Any = SmallVGG(4, 3, [[4], [6]])
    model.features[0].weight.requires_grad_(False)
    back: Any = load(save(model, tmp_path / "model"))
    assert [name for name, weight in back.named_parameters() if not weight.requires_grad] == ["features.0.weight"]
    fresh = SmallVGG(4, 3, [[4], [6]]).requires_grad_(False)
    load(tmp_path / "model", model=fresh)
    assert fresh.classifier.weight.requires_grad


def test_loading_draws_no_random_numbers_and_saving_neither(tmp_path: Path) -> None:
    model = build("swin_t", 3)
    before = torch.get_rng_state()
    load(save(model, tmp_path / "model"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_network_is_in_evaluation_mode_and_the_saved_one_as_it_was(tmp_path: Path) -> None:
    model = SmallVGG().train()
    assert not any(module.training for module in load(save(model, tmp_path / "model")).modules())
    assert model.training


def test_nothing_in_the_files_is_pickled(saved: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == ["manifest.json", "model.safetensors"]
    json.loads((saved / "manifest.json").read_text())
    content = (saved / "model.safetensors").read_bytes()
    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def test_a_path_that_exists_is_refused_and_kept(saved: Path) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    with pytest.raises(InputError, match=r"saved exists already; choose another path or pass overwrite=True"):
        save(SmallVGG(), saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_overwrite_replaces_and_leaves_nothing_beside(saved: Path) -> None:
    save(SmallVGG(9), saved, overwrite=True)
    assert classes(saved) == 9
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_overwrite_never_deletes_anything_but_a_saved_model(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thesis"
    if kind == "folder":
        path.mkdir()
        (path / "chapter.txt").write_text("years of work")
    else:
        path.write_text("years of work")
    with pytest.raises(InputError, match="thesis holds more than a saved model and is not overwritten"):
        save(SmallVGG(), path, overwrite=True)
    assert (path / "chapter.txt" if kind == "folder" else path).read_text() == "years of work"


def test_parent_folders_are_made(tmp_path: Path) -> None:
    assert load(save(SmallVGG(), tmp_path / "a" / "b" / "c"))


@pytest.mark.parametrize("exists", [False, True])
def test_a_save_that_fails_at_any_point_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    path = tmp_path / "model"
    if exists:
        save(SmallVGG(5), path)
    calls, limit = [0], [0]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == limit[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    points = 4 if exists else 3  # two files, the old folder aside, the new one into its place
    for limit[0] in range(1, points + 1):
        calls[0] = 0
        with pytest.raises(EnvironmentFault, match=r"no space left, \d+ MiB free, 1 MiB needed"):
            save(SmallVGG(9), path, overwrite=exists)
        assert [entry.name for entry in tmp_path.iterdir()] == (["model"] if exists else [])
        if exists:
            assert classes(path) == 5
    limit[0] = -1
    save(SmallVGG(9), path, overwrite=exists)
    assert classes(path) == 9


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="model: cannot be written"):
        save(SmallVGG(), tmp_path / "file" / "model")


def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    draw = random.Random(0)
    for name in ("model.safetensors", "manifest.json"):
        whole = (saved / name).read_bytes()
        for place in draw.sample(range(len(whole)), 150):
            broken = bytearray(whole)
            broken[place] ^= 1 << draw.randrange(8)
            (saved / name).write_bytes(broken)
            try:
                load(saved)
            except CheckpointError:
                continue
            # what JSON does not distinguish, such as a line break from a space, is no damage
            assert name == "manifest.json"
            assert json.loads(broken) == json.loads(whole)
        (saved / name).write_bytes(whole)
    load(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_truncated_files_are_refused(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for length in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        (saved / name).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="is damaged: the SHA-256|cannot be read"):
            load(saved)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.json", "saved: no manifest.json there; prune_fe.save writes one"),
        ("model.safetensors", "saved: No such file or directory: model.safetensors"),
    ],
)
def test_missing_files_are_named(saved: Path, name: str, text: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=text):
        load(saved)


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_text("")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "model.pth")


def halved(model: nn.Module) -> nn.Module:
    """Every convolution of a resnet18 with half of its units, by hand."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.out_channels //= 2
            module.in_channels = module.in_channels if module.in_channels == 3 else module.in_channels // 2
            module.weight = nn.Parameter(torch.rand(module.out_channels, module.in_channels, *module.kernel_size))
        elif isinstance(module, nn.BatchNorm2d):
            module.__init__(module.num_features // 2)  # type: ignore[misc]
    return model


def test_the_original_of_a_pruned_network_is_built_with_weights_and_what_was_set_by_hand(tmp_path: Path) -> None:
    fresh = torchvision.models.resnet18(num_classes=1000)
    pruned = halved(torchvision.models.resnet18())
    pruned.fc = nn.Linear(256, 7)
    pruned.conv1.stride = (1, 1)  # type: ignore[assignment]
    before = torch.get_rng_state()
    save(pruned, tmp_path / "pruned")
    found = build_original(tmp_path / "pruned", 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert shapes(found) == shapes(fresh) | {"fc.weight": (7, 512), "fc.bias": (7,)}
    assert found.conv1.stride == (1, 1)
    assert not found.training
    assert all(value.device.type == "cpu" and value.isfinite().all() for value in found.state_dict().values())
    assert len(found.conv1.weight.detach().unique()) > 9000  # type: ignore[operator]


@pytest.mark.parametrize(
    ("model", "outputs", "channels"),
    [
        (SmallVGG(5, 1, stages=[[4], [6]]), 5, 1),
        (build("timm/resnet10t", 3, in_channels=2), 3, 2),
        (build("googlenet", 4, aux_logits=False, init_weights=False), 4, 3),
    ],
    ids=["vgg-small", "timm", "googlenet"],
)
def test_the_original_of_a_network_that_lost_nothing_is_like_it(
    tmp_path: Path, model: nn.Module, outputs: int, channels: int
) -> None:
    save(model, tmp_path / "saved")
    assert shapes(build_original(tmp_path / "saved", outputs, channels)) == shapes(model)


def test_an_original_that_cannot_be_known_is_asked_for(tmp_path: Path) -> None:
    save(Own(), tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"own holds a .*Own, whose constructor is not known; say with --against"):
        build_original(tmp_path / "own", 5)
    odd = torchvision.models.resnet18()
    odd.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    save(odd, tmp_path / "odd")
    with pytest.raises(CheckpointError, match=r"'conv1' has other kernels than the 7×7 of torchvision/resnet18; say"):
        build_original(tmp_path / "odd", 1000)
    save(SmallVGG(stages=[[4]]), tmp_path / "vgg")
    with pytest.raises(CheckpointError, match=r"its original cannot be built \(.*\); say with --against"):
        rewritten = json.loads((tmp_path / "vgg" / "manifest.json").read_text()) | {"factory": "prune_fe/resnet18"}
        (tmp_path / "vgg" / "manifest.json").write_text(json.dumps(rewritten))
        build_original(tmp_path / "vgg", 10)
