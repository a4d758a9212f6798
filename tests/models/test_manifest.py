"""Manifests: damaged and forged ones are refused by name, and nothing is fetched or run."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prune_fe.errors import CheckpointError
from prune_fe.models.manifest import read_manifest
from prune_fe.models.saved import load, save
from prune_fe.models.small_vgg import SmallVGG
from tests.models.networks import forge, setting


def test_the_forger_of_these_tests_is_a_good_one(saved: Path) -> None:
    forge(saved, lambda manifest: manifest.update(about={"size": 99}))
    load(saved)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda m: m.update(factory="os/system", arguments={}),
            "'os/system' cannot be built: unknown model 'os/system'",
        ),
        (
            lambda m: m.update(factory="prune_fe/../../etc", arguments={}),
            "'prune_fe/../../etc' cannot be built: unknown model",
        ),
        (
            lambda m: m.update(factory="timm/../resnet18", arguments={}),
            "'timm/../resnet18' cannot be built: unknown model",
        ),
        (
            lambda m: m.update(factory="timm/hf-hub:evil/model", arguments={}),
            "'timm/hf-hub:evil/model' cannot be built: unknown model",
        ),
        (
            lambda m: m.update(factory="hf-hub:evil/model", arguments={}),
            "'hf-hub:evil/model' cannot be built: unknown model",
        ),
        (
            lambda m: m.update(factory="timm/local-dir:/x", arguments={}),
            "'timm/local-dir:/x' cannot be built: unknown model",
        ),
        (lambda m: m.update(factory="torchvision/fasterrcnn_resnet50_fpn", arguments={}), "unknown model"),
        (
            lambda m: m.update(factory="torchvision/resnet18", arguments={"weights": "DEFAULT"}),
            "'weights' is not an argument",
        ),
        (
            lambda m: m.update(factory="timm/resnet18", arguments={"pretrained": True}),
            "'pretrained' is not an argument that a file may give",
        ),
        (lambda m: m.update(factory="timm/resnet18", arguments={"checkpoint_path": "x"}), "'checkpoint_path' is not"),
        (lambda m: m.update(factory="resnet18", arguments={}), "module '' cannot have class = .*SmallVGG.* in ResNet"),
        (lambda m: m.update(factory=3), "'factory' is missing or of a wrong type"),
        (lambda m: m.update(arguments={"stages": 5}), "factory 'prune_fe/vgg-small' cannot be built"),
        (lambda m: m.update(arguments={"stages": [["4"]]}), "factory 'prune_fe/vgg-small' cannot be built"),
        (lambda m: m.update(arguments={"classes": 10**30}), "factory 'prune_fe/vgg-small' cannot be built"),
        (lambda m: m.update(arguments={"classes": -1}), "factory 'prune_fe/vgg-small' cannot be built"),
        (lambda m: m.update(arguments={"stages": [[1]] * 20_000}), "the arguments hold 20000 values; allowed are 1000"),
        (lambda m: m.update(arguments={"stages": [[10**14]]}), "cannot be built|another architecture"),
        (lambda m: m.update(arguments=[]), "'arguments' is missing or of a wrong type"),
        (lambda m: m.update(format=2), "format 2, this version reads 1"),
        (lambda m: m.pop("format"), "not a manifest of prune_fe"),
        *[
            (lambda m, key=key: m.pop(key), f"'{key}' is missing or of a wrong type")
            for key in ("class", "factory", "arguments", "settings", "frozen", "about")
        ],
        (lambda m: m.update(settings=[]), "'settings' is missing or of a wrong type"),
        (lambda m: m.update(settings={"": 3}), "'settings' holds something else than modules"),
        (lambda m: m.update(frozen=3), "'frozen' is missing or of a wrong type"),
        (lambda m: m.update(frozen=[[]]), "'frozen' holds something else than names"),
        (lambda m: m.update(frozen=["head"]), "'head' is to be frozen, SmallVGG has no such weight"),
        (lambda m: m.update(added=3), "'added' is missing or of a wrong type"),
        (lambda m: m.update(added={"": 3}), "'added' holds something else than modules"),
        (lambda m: m.update(added={"": {"forward": 3}}), "module '' cannot have forward = '3' in SmallVGG"),
        (lambda m: m.update(added={"": {"x": {"is": "os"}}}), "module '' cannot have x = .* in SmallVGG"),
        (lambda m: m.update(added={"features": {"0": 3}}), "module 'features' cannot have 0 = '3' in SmallVGG"),
        (lambda m: m.update(added={"features.0": {"weight": 3}}), "module 'features.0' cannot have weight = '3'"),
        (lambda m: m.update(added={"features.0": {"_buffers": 3}}), "module 'features.0' cannot have _buffers = '3'"),
        (lambda m: m.update(added={"nothing": {"x": 3}}), "module 'nothing' cannot have x = '3' in SmallVGG"),
        (lambda m: m.update(tied=[]), "'tied' is missing or of a wrong type"),
        (lambda m: m.update(tied={"classifier.bias": 3}), "'tied' holds something else than names"),
        (
            lambda m: m.update(tied={"classifier.bias": "x"}),
            "'classifier.bias' and 'x' are one tensor, but the model lacks 'x'",
        ),
        (
            lambda m: m.update(tied={"features.1.bias": "features.1.weight"}),
            "'features.1.bias' is only in the file; another architecture",
        ),
        (lambda m: m.update(channels_last=[[]]), "'channels_last' holds something else than names"),
        (
            lambda m: m.update(channels_last=["classifier.bias"]),
            "'classifier.bias' is laid out in channels-last, but model.safetensors holds no tensor of this name with 4",
        ),
        (lambda m: m.update(channels_last=["x"]), "'x' is laid out in channels-last, but model.safetensors holds no"),
        (setting("nothing", "groups", 2), "module 'nothing' is not in SmallVGG; another architecture"),
        (setting("features.0", "number", 2), "module 'features.0' cannot have number = '2' in SmallVGG"),
        (setting("features.0", "forward", "x"), "module 'features.0' cannot have forward = 'x' in SmallVGG"),
        (setting("features.0", "__class__", "x"), "module 'features.0' cannot have __class__ = 'x'"),
        (setting("features.0", "_parameters", {}), "module 'features.0' cannot have _parameters = "),
        (setting("features.0", "training", True), "module 'features.0' cannot have training = 'True'"),
        (setting("features.0", "class", {"is": "os.system"}), "module 'features.0' cannot have class = "),
        (setting("features.0", "out_channels", "4"), "module 'features.0' cannot have out_channels = '4'"),
        (setting("features.0", "out_channels", True), "module 'features.0' cannot have out_channels = 'True'"),
        (setting("features.0", "out_channels", None), "module 'features.0' cannot have out_channels = 'None'"),
        (setting("features.0", "stride", [1]), r"module 'features.0' cannot have stride = '\[1\]'"),
        (setting("features.0", "stride", [1, "1"]), "module 'features.0' cannot have stride = "),
        (setting("features.0", "stride", [1, {"is": "x"}]), "module 'features.0' cannot have stride = "),
        (setting("features.0", "out_channels", 10**30), r"module 'features.0' says \(10{30}, 3, 1\) channels"),
        (setting("features.0", "out_channels", -4), r"module 'features.0' says \(-4, 3, 1\) channels"),
        (setting("features.0", "groups", 0), r"module 'features.0' says \(4, 3, 0\) channels"),
        (setting("features.0", "groups", 3), r"module 'features.0' says \(4, 3, 3\) channels"),
        (setting("features.1", "num_features", 5), r"module 'features.1' says \(5,\) channels"),
        (setting("classifier", "in_features", 5), r"module 'classifier' says \(4, 5\) channels"),
    ],
)
def test_a_forged_manifest_is_refused_by_name_and_nothing_is_fetched_or_run(
    saved: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], Any], text: str
) -> None:
    def reached(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("something was fetched or run")

    monkeypatch.setattr("urllib.request.urlopen", reached)
    monkeypatch.setattr("socket.socket.connect", reached)
    monkeypatch.setattr(os, "system", reached)
    forge(saved, change)
    with pytest.raises(CheckpointError, match=text):
        load(saved)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"\xff\xfe", b"{}", b'{"format": NaN}', b"[" * 100_000, b'{"format": ' + b"1" * 9999]
)
def test_a_manifest_that_is_none_is_refused(saved: Path, content: bytes) -> None:
    (saved / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest.json: (cannot be read|not a manifest|format nan)"):
        load(saved)


def test_about_comes_back(saved: Path) -> None:
    assert read_manifest(saved)["about"] == {"size": 32}


def test_about_may_have_numbers_as_keys_and_tuples(tmp_path: Path) -> None:
    path = save(SmallVGG(), tmp_path / "model", {"names": {10: "x", 9: "y"}, "size": (3, 4), "loss": float("nan")})
    load(path)
    assert read_manifest(path)["about"]["names"] == {"10": "x", "9": "y"}


def test_a_pipe_and_a_file_beyond_reason_are_refused_at_once(saved: Path) -> None:
    (saved / "manifest.json").unlink()
    os.mkfifo(saved / "manifest.json")
    with pytest.raises(CheckpointError, match=r"manifest\.json: cannot be read .*not a regular file"):
        load(saved)
    (saved / "manifest.json").unlink()
    (saved / "manifest.json").write_bytes(b" " * (2**25 + 1))
    with pytest.raises(CheckpointError, match=r"manifest\.json: larger than 32 MiB, so it is not a manifest"):
        load(saved)


@pytest.mark.parametrize("layers", [20_000])
def test_a_manifest_of_very_many_layers_is_refused_in_a_second(saved: Path, layers: int) -> None:
    forge(saved, lambda m: m["settings"].update({f"features.{number}": {} for number in range(layers)}))
    start = time.process_time()
    with pytest.raises(CheckpointError, match="not in SmallVGG"):
        load(saved)
    assert time.process_time() - start < 2
    forge(saved, lambda m: m.update(frozen=["features.0.weight"] * layers))
    with pytest.raises(CheckpointError, match="not in SmallVGG"):
        load(saved)
