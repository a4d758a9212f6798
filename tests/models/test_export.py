"""An exported file computes what the model computes, holds nothing else, and needs no prune_fe."""

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import prune_fe
from prune_fe.cli.app import main
from prune_fe.errors import EnvironmentFault, InputError
from prune_fe.models.export import BATCHES, SUFFIXES, Exported, Format, export
from prune_fe.models.saved import load
from prune_fe.models.small_vgg import SmallVGG
from tests.tracing.keeping import Keeping, state

pytestmark = pytest.mark.xdist_group("export")  # so that `exported` is made once

X = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
FORMATS = tuple(SUFFIXES)

ABOUT = {"classes": ["cat", "dög"], "size": 64}
Files = dict[tuple[str, Format], tuple[nn.Module, Exported]]
Act = Callable[[Tensor], Any]


def small() -> SmallVGG:
    return SmallVGG(classes=2, stages=((6,), (8,))).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg-small": small,
    "torchvision": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "timm": lambda: timm.create_model("test_resnet", num_classes=10),
}
WRITTEN: list[tuple[str, Format]] = [
    *(("vgg-small", format) for format in FORMATS),
    ("torchvision", "onnx"),
    *(("timm", format) for format in FORMATS),
]


def pruned(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    model.train()(torch.randn(8, 3, 64, 64))  # norms that have seen nothing change nothing
    return prune_fe.prune(model, prune_fe.score(model, None, scorer="l1-filter"), 0.5, X).model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """(network, format) -> the pruned network, and what was written of it."""
    folder = tmp_path_factory.mktemp("exported")
    networks = {name: pruned(name) for name in NETWORKS}
    return {
        (name, format): (
            networks[name],
            prune_fe.export(networks[name], folder / f"{name}{SUFFIXES[format]}", X, format, about=ABOUT),
        )
        for name, format in WRITTEN
    }


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def left() -> list[str]:
    return sorted(os.listdir())


# The file is the model


@pytest.mark.parametrize("name", NETWORKS)
def test_an_onnx_file_runs_in_onnxruntime_for_any_batch_as_the_model_does(exported: Files, name: str) -> None:
    model, done = exported[name, "onnx"]
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("images", ["batch", 3, 64, 64])
    assert (returned.name, returned.shape[0]) == ("logits", "batch")
    for batch in (1, 2, 3, 7):
        images = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            expected = model(images)
        (logits,) = session.run(None, {"images": images.numpy()})
        assert (torch.from_numpy(logits) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_pt2_file_runs_in_plain_torch(exported: Files) -> None:
    chosen = {str(done.path): model for (_, format), (model, done) in exported.items() if format == "torch-export"}
    code = f"""
import sys
for name in ("prune_fe", "timm", "torchvision", "torch_pruning", "onnx"):
    sys.modules[name] = None
import torch
torch.manual_seed(1)
images = torch.randn(3, 3, 64, 64)
torch.save([torch.export.load(path).module()(images) for path in {list(chosen)!r}], "logits.pth")
"""
    # torch 2.11 itself warns of the buffer that it reads the file into.
    strict = [sys.executable, "-W", "error", "-W", "ignore:The given buffer is not writable", "-c", code]
    done = subprocess.run(strict, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    torch.manual_seed(1)
    images = torch.randn(3, 3, 64, 64)
    for logits, model in zip(torch.load("logits.pth"), chosen.values(), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(logits, model(images))


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_reported_is_what_was_found(exported: Files, format: Format) -> None:
    model, done = exported["vgg-small", format]
    assert (done.format, done.batches, done.weights) == (format, BATCHES, None)
    assert done.bytes == done.path.stat().st_size
    assert done.max_difference <= 1e-6 * done.largest_logit
    assert done.relative_difference == done.max_difference / done.largest_logit
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        largest = max(model(torch.randn(n, 3, 64, 64, generator=random)).abs().max().item() for n in BATCHES)
    assert done.largest_logit == pytest.approx(largest)
    assert done.opset == (onnx.load(done.path).opset_import[0].version if format == "onnx" else None)


def test_a_forward_hook_that_changes_the_logits_is_part_of_the_model() -> None:
    model = small()
    plain = export(model, "plain.pt2", X, "torch-export")
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert export(model, "hooked.pt2", X, "torch-export").largest_logit == pytest.approx(2 * plain.largest_logit)


def test_the_model_is_left_as_it_was() -> None:
    model = small().half().to(memory_format=torch.channels_last).train()
    model.features[0].eval()
    model.classifier.weight.requires_grad_(False)
    model.register_forward_hook(lambda module, inputs, output: None)

    def state() -> list[object]:
        hooks = [len(module._forward_hooks) for module in model.modules()]
        modes = [module.training for module in model.modules()]
        return [hooks, modes, [(w.dtype, w.device, w.stride(), w.requires_grad, w.grad) for w in model.parameters()]]

    before, weights = state(), {name: value.clone() for name, value in model.state_dict().items()}
    export(model, "half.pt2", X, "torch-export")
    assert state() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


# Nothing else is in it


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_holds_no_image_of_the_user(format: Format) -> None:
    path, model = Path(f"net{SUFFIXES[format]}"), small()
    image = torch.full((1, 3, 64, 64), 0.123456789)
    model(image)
    export(model, path, image, format)
    assert image[0, 0, 0, :4].numpy().tobytes() not in path.read_bytes()
    if format == "torch-export":
        assert torch.export.load(path).example_inputs is None


@pytest.mark.parametrize(("name", "format"), WRITTEN)
def test_the_file_names_no_place_on_this_machine(exported: Files, name: str, format: Format) -> None:
    content = exported[name, format][1].path.read_bytes()
    for place in (Path(prune_fe.__file__).parent, Path(torch.__file__).parents[1], Path.home(), Path.cwd().parent):
        assert str(place).encode() not in content


def test_what_is_known_of_the_model_is_in_the_file(exported: Files) -> None:
    extra = {"about.json": ""}
    torch.export.load(exported["vgg-small", "torch-export"][1].path, extra_files=extra)
    (entry,) = onnx.load(exported["vgg-small", "onnx"][1].path).metadata_props
    assert entry.key == "about"
    for text in (extra["about.json"], entry.value):
        found = json.loads(text)
        assert found.pop("producer").startswith("prune_fe 0.")
        assert found == {"input": ["batch", 3, 64, 64], **ABOUT}


def test_weights_that_one_onnx_file_cannot_hold_lie_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prune_fe.models.export.ONE_FILE", 0)
    done = export(small(), "net.onnx", X)
    assert left() == ["net.onnx", "net.onnx.data"]
    assert done.weights == Path("net.onnx.data")
    assert done.bytes == sum(os.path.getsize(name) for name in left())
    os.remove("net.onnx")
    with pytest.raises(InputError, match=r"net\.onnx\.data exists already; choose another path"):
        export(small(), "net.onnx", X)
    assert left() == ["net.onnx.data"]


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_printed_and_nothing_is_left_beside_the_file(
    format: Format, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(f"new/folder/net{SUFFIXES[format]}")
    export(small(), path, X, format)
    assert os.listdir(path.parent) == [path.name]
    assert capfd.readouterr() == ("", "")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


# What is refused, without a file


class Odd(nn.Module):
    """A small network with something done to its logits."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.network, self.act = small(), act

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.network(images))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda x: x * float("nan"), "Odd: its outputs hold NaN or infinite values"),
        (lambda x: {"logits": "x"}, r"Odd returns \['logits'\] str; it must return tensors"),
        (lambda x: x + 1 if x.sum() > 0 else x, "Odd cannot be traced for any batch size: "),
        (lambda x: x + int(x.shape[0]), r"Odd cannot be traced for any batch size: Constraints violated \(batch\)"),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused(act: Act, message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(Odd(act), "odd.pt2", X, "torch-export")
    assert left() == []


def test_an_operator_that_onnx_has_not_is_named() -> None:
    with pytest.raises(InputError, match="the graph has no form in ONNX: .*"):
        export(Odd(torch.special.bessel_j0), "odd.onnx", X)
    assert left() == []


@pytest.mark.parametrize(
    ("format", "wrong", "message"),
    [
        (
            "onnx",
            lambda x: x + 0.01,
            "the exported graph is not the model: logits differ by 0.01, allowed are 0.001 of",
        ),
        ("torch-export", lambda x: x + 1e-4, "logits differ by 0.0001, allowed are 1e-05 of the largest, 0."),
        ("torch-export", lambda x: x * float("nan"), "logits differ by nan"),
        ("torch-export", lambda x: x[:, :1], "logits differ by inf"),
        ("torch-export", lambda x: x.nonsense, r"the exported graph does not run \('Tensor' object"),
    ],
)
def test_a_file_that_is_not_the_model_is_refused_and_removed(
    monkeypatch: pytest.MonkeyPatch, format: Format, wrong: Act, message: str
) -> None:
    model = small()
    reader = {"onnx": "_load_onnx", "torch-export": "_load_pt2"}[format]
    monkeypatch.setattr(f"prune_fe.models.export.{reader}", lambda *_: lambda images: wrong(model(images).detach()))
    with pytest.raises(InputError, match=message):
        export(model, f"net{SUFFIXES[format]}", X, format)
    assert left() == []


def test_a_wrong_request_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("copy.deepcopy", lambda model: pytest.fail("work was begun"))
    Path("there.onnx").touch()
    with pytest.raises(InputError, match=r"there\.onnx exists already; choose another path"):
        export(small(), "there.onnx", X)
    with pytest.raises(InputError, match="format is 'tensorrt', allowed are onnx, torch-export"):
        export(small(), "net.onnx", X, "tensorrt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"net\.pt2: a file of format 'onnx' must end in \.onnx"):
        export(small(), "net.pt2", X)
    with pytest.raises(InputError, match=r"example is \(64,\); it must hold an image \(images, channels, height"):
        export(small(), "net.onnx", X[0, 0, 0])
    assert left() == ["there.onnx"]


def test_an_input_that_the_model_does_not_take_is_named() -> None:
    with pytest.raises(InputError, match=r"SmallVGG does not run on an input of \(1, 4, 64, 64\): .*4 channels"):
        export(small(), "net.onnx", torch.zeros(1, 4, 64, 64))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"format 'onnx' needs {package}: pip install 'prune-fe\[export\]'"):
        export(small(), "net.onnx", X)
    assert export(small(), "net.pt2", X, "torch-export").path.exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_said_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, format: Format) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        EnvironmentFault, match=r"net\.\w+: no space left, \d+ MiB free, \d+ MiB needed on the disk of /"
    ):
        export(small(), f"net{SUFFIXES[format]}", X, format)
    Path("file").touch()
    with pytest.raises(EnvironmentFault, match=r"file/net\.\w+: cannot be written"):
        export(small(), f"file/net{SUFFIXES[format]}", X, format)
    assert left() == ["file"]


# The command


def test_a_timm_model_is_pruned_saved_and_exported_by_commands() -> None:
    network = ("--model", "timm/test_resnet", "--num-classes", "3", "--size", "64")
    assert main(["score", *network, "--scorer", "l1-filter"]) == 0
    assert main(["prune", *network, "--scores", "scores/l1-filter"]) == 0
    words = [sys.executable, "-m", "prune_fe", "export", "--model", "pruned", "--format", "torch-export"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pruned.pt2: 0.")
    assert " MiB, batches of 1, 2 and 5 images: maximum difference 0, 0 of the largest logit\n" in done.stdout
    extra, images = {"about.json": ""}, torch.randn(4, 3, 64, 64)
    graph = torch.export.load("pruned.pt2", extra_files=extra).module()
    with torch.no_grad():
        torch.testing.assert_close(graph(images), load("pruned")(images))
    found = json.loads(extra["about.json"])
    assert (found["scores"]["scorer"], found["prune"]["ratio"], found["size"]) == ("l1-filter", None, 64)


def test_the_command_says_what_is_wrong_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> tuple[int, str]:
        code = main(["export", "--model", "vgg-small", *words])
        (line,) = capsys.readouterr().err.splitlines()
        return code, line

    assert refused("--format", "onx")[1].endswith('Did you mean "onnx"?')
    assert refused("--outptu", "x")[1].endswith("Did you mean --output?")
    Path("vgg-small.onnx").touch()
    assert refused() == (2, "prune-fe: vgg-small.onnx exists already; choose another --output")
    code, line = refused("--output", "net.pt2", "--size", "32")
    assert (code, line.partition(":")[2]) == (2, " net.pt2: a file of format 'onnx' must end in .onnx")
    assert left() == ["vgg-small.onnx"]


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_a_network_that_keeps_its_last_maps_is_exported_and_left_as_it_was(format: Format) -> None:
    model, x = Keeping(), torch.randn(2, 3, 6, 6)
    model(x).sum().backward()
    before, total = state(model), model.total.clone()
    exported = export(model, f"keeping{SUFFIXES[format]}", x, format)
    assert exported.max_difference <= 1e-4
    assert all(before[key] is value for key, value in state(model).items())
    assert (len(model.history), torch.equal(model.total, total)) == (1, True)


def test_what_cannot_be_copied_is_named() -> None:
    model = small()
    model.features[0].lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(
        InputError, match=r"SmallVGG cannot be copied: .*; it is attribute 'lock' of layer 'features\.0'"
    ):
        export(model, "net.onnx", X)
    assert left() == []
