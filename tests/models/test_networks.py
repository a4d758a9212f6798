"""Networks by name, weights from files, and save/load: the same bits back, and nothing else gets in."""

import copy
import errno
import hashlib
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import prune_fe
from prune_fe.errors import CheckpointError, EnvironmentFault, InputError
from prune_fe.models import networks as models
from prune_fe.models.networks import SmallVGG, build, load, load_weights, read_manifest, save


class Own(nn.Module):
    """A user's network: nothing in the package knows it."""

    grey: Tensor
    scale: Tensor

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1, groups=1)
        self.head = nn.Linear(width, 5)
        self.register_buffer("grey", torch.tensor([3, 1, 2]))
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.device_name = "of the user"

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.first(images * self.scale)))
        return self.head(torch.relu(self.second(maps)).mean((2, 3))) + self.grey[0]


def alive(model: nn.Module) -> nn.Module:
    """Not fresh: norms that have seen images, so that a lost buffer shows."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return model.eval()


def outputs(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(example)


def images(size: int, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(2))


def classes(path: Path) -> int:
    model = load(path)
    assert isinstance(model, SmallVGG)
    return model.classifier.out_features


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(SmallVGG(4, 3, [[4], [6]]), tmp_path / "saved", {"size": 32})


# ---- build


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vgg-small", "prune_fe.models.SmallVGG"),
        ("prune_fe/vgg-small", "prune_fe.models.SmallVGG"),
        ("resnet18", "torchvision.models.resnet.ResNet"),
        ("torchvision/resnet18", "torchvision.models.resnet.ResNet"),
        ("timm/resnet18", "timm.models.resnet.ResNet"),
        ("efficientnet_lite0", "timm.models.efficientnet.EfficientNet"),
        ("timm/resnet18.tv_in1k", "timm.models.resnet.ResNet"),
    ],
)
def test_a_name_says_which_network_is_built(name: str, kind: str) -> None:
    model = build(name, 7)
    assert f"{type(model).__module__}.{type(model).__qualname__}" == kind
    assert outputs(model, images(64)).shape == (2, 7)


@pytest.mark.parametrize("name", ["vgg-small", "timm/resnet18"])
def test_channels_are_the_networks_input(name: str) -> None:
    assert outputs(build(name, 3, in_channels=1), images(32, 1)).shape == (2, 3)


def test_arguments_go_to_the_constructor() -> None:
    small: Any = build("vgg-small", 3, stages=[[5]])
    assert small.features[0].out_channels == 5
    big: Any = build("resnet18", 3, norm_layer=nn.InstanceNorm2d)
    assert isinstance(big.bn1, nn.InstanceNorm2d)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet_18", r"unknown model 'resnet_18'; did you mean resnet18"),
        ("vgg-smal", r"unknown model 'vgg-smal'; did you mean vgg-small"),
        ("timm/vgg-small", r"unknown model 'timm/vgg-small'"),
        ("torchvision/efficientnet_lite0", r"unknown model 'torchvision/efficientnet_lite0'"),
        ("hf-hub:timm/resnet18", "unknown model 'hf-hub:timm/resnet18'"),
        ("timm/hf-hub:timm", "unknown model 'timm/hf-hub:timm'"),
        ("local-dir:/x", "unknown model 'local-dir:/x'"),
        ("os/system", "unknown model 'os/system'"),
        ("", "unknown model ''"),
        ("qqqqqqqq", "unknown model 'qqqqqqqq'$"),
        ("fasterrcnn_resnet50_fpn", "unknown model 'fasterrcnn_resnet50_fpn'"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        build(name, 10)


def test_a_suggestion_stands_once() -> None:
    with pytest.raises(InputError, match="did you mean") as caught:
        build("inception_v33", 10)
    named = str(caught.value).partition("did you mean ")[2].rstrip("?").split(", ")
    assert len(set(named)) == len(named)


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("resnet18", {"in_channels": 1}, "model 'resnet18' reads 3 channels, the images have 1"),
        ("vgg-small", {"pretrained": True}, "model 'vgg-small' has no pretrained weights"),
        ("resnet18", {"pretrained": True}, "model 'resnet18': its weights tell 1000 classes apart, the data has 10"),
        ("vgg-small", {"widths": 3}, "model 'vgg-small': .*unexpected keyword argument 'widths'"),
        ("resnet18", {"widths": 3}, "model 'resnet18': .*unexpected keyword argument 'widths'"),
        ("timm/resnet18", {"widths": 3}, "model 'timm/resnet18': .*unexpected keyword argument 'widths'"),
    ],
)
def test_what_a_network_cannot_have_is_refused_by_name(name: str, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        build(name, 10, **arguments)


# ---- load_weights


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


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return Path.touch, (self.touched,)


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


# ---- save and load: the same bits


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vgg-small", 16),
        ("vgg16_bn", 32),
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


def google(**arguments: Any) -> nn.Module:
    return torchvision.models.googlenet(init_weights=False, **arguments)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: torchvision.models.densenet121(memory_efficient=True), 32),
        (lambda: torchvision.models.mobilenet_v3_small(dropout=0.4, width_mult=0.5), 32),
        (lambda: torchvision.models.resnext50_32x4d(replace_stride_with_dilation=[False, True, True]), 32),
        (torchvision.models.regnet_y_400mf, 32),
        (torchvision.models.squeezenet1_1, 48),
        (torchvision.models.shufflenet_v2_x1_0, 32),
        (lambda: google(aux_logits=True), 64),
        (lambda: google(aux_logits=False, transform_input=True), 64),
        (lambda: build("timm/convnext_atto", 5, in_channels=2), 32),
        (lambda: build("timm/tf_efficientnet_b0", 5, drop_rate=0.3), 32),
        (lambda: build("timm/levit_128s", 5), 224),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_a_network_of_a_library_comes_back_with_every_setting(
    tmp_path: Path, make: Callable[[], nn.Module], size: int
) -> None:
    model = alive(make())
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    example = images(size, channels)
    back = load(save(model, tmp_path / "model"))
    assert torch.equal(outputs(back, example), outputs(model, example))
    assert repr(back) == repr(model)
    assert models._settings(back) == models._settings(model)


def test_a_flag_that_is_neither_printed_nor_a_tensor_comes_back(tmp_path: Path) -> None:
    model = alive(torchvision.models.inception_v3(init_weights=False, transform_input=True))
    back = load(save(model, tmp_path / "model"))
    assert back.transform_input is True
    assert read_manifest(tmp_path / "model")["factory"] == "torchvision/inception_v3"
    assert back.aux_logits is True


@pytest.mark.parametrize("change", ["forward", "child", "missing", "tensor", "function"])
def test_a_library_network_that_was_changed_by_hand_is_not_taken_for_the_librarys(tmp_path: Path, change: str) -> None:
    model: Any = torchvision.models.mobilenet_v2()
    if change == "forward":
        model.forward = lambda x: x
    elif change == "child":
        model.classifier[0] = nn.Identity()
    elif change == "missing":
        del model.features[0][2]
    elif change == "tensor":
        model.shift = torch.ones(1)
    else:
        model.features[0][2].inplace = torch.relu
    save(model, tmp_path / "model")
    with pytest.raises(
        CheckpointError, match=r"holds a torchvision.models.mobilenetv2.MobileNetV2: build one and pass load\("
    ):
        load(tmp_path / "model")


def test_a_network_with_a_tensor_that_is_no_buffer_is_left_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SmallVGG.__init__

    def constructor(self: Any, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        self.shift = torch.rand(1)

    monkeypatch.setattr(SmallVGG, "__init__", constructor)
    save(SmallVGG(), tmp_path / "model")
    assert read_manifest(tmp_path / "model")["factory"] is None


def test_finding_the_constructor_makes_no_weights() -> None:
    for factory in ("torchvision/vgg16", "torchvision/regnet_y_128gf", "timm/resnet18", "prune_fe/vgg-small"):
        weights = dict(models._from_factory(factory, {}).named_parameters())
        assert all(weight.is_meta for weight in weights.values() if weight.ndim > 1), factory


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


def test_buffers_come_back_of_every_kind(tmp_path: Path) -> None:
    model: Any = Own()
    model.grey, model.scale = torch.tensor([7, 8, 9], dtype=torch.int32), torch.tensor(0.25)
    model.norm.num_batches_tracked += 5
    back: Any = load(save(model, tmp_path / "own"), model=Own())
    assert torch.equal(back.grey, model.grey)
    assert back.grey.dtype == torch.int32
    assert back.scale == 0.25, "a buffer outside the state dict"
    assert back.norm.num_batches_tracked == 5


def test_frozen_weights_come_back_frozen_and_the_others_not(tmp_path: Path) -> None:
    model: Any = SmallVGG(4, 3, [[4], [6]])
    model.features[0].weight.requires_grad_(False)
    back: Any = load(save(model, tmp_path / "model"))
    assert [name for name, weight in back.named_parameters() if not weight.requires_grad] == ["features.0.weight"]
    fresh = SmallVGG(4, 3, [[4], [6]]).requires_grad_(False)
    load(tmp_path / "model", model=fresh)
    assert fresh.classifier.weight.requires_grad


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again = self.first

    def forward(self, rows: Tensor) -> Tensor:
        return self.again(self.second(self.first(rows)))


def test_tied_weights_come_back_tied(tmp_path: Path) -> None:
    model = Tied()
    back: Any = load(save(model, tmp_path / "tied"), model=Tied())
    assert torch.equal(outputs(back, torch.eye(4)), outputs(model, torch.eye(4)))
    assert back.second.weight is back.first.weight
    assert back.again is back.first


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    model, flat = Tied(), torch.arange(32.0)
    model.first.weight, model.second.weight = (nn.Parameter(flat[i : i + 16].view(4, 4)) for i in (0, 8))
    fresh = Tied()
    fresh.second.weight = nn.Parameter(torch.zeros(4, 4))
    back: Any = load(save(model, tmp_path / "views"), model=fresh)
    assert back.second.weight.flatten().tolist() == list(range(8, 24))


def test_half_precision_and_channels_last_come_back(tmp_path: Path) -> None:
    model = SmallVGG(4, 3, [[4]]).to(torch.bfloat16).to(memory_format=torch.channels_last)
    back: Any = load(save(model, tmp_path / "model"))
    assert back.classifier.weight.dtype == torch.bfloat16
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())


def test_loading_draws_no_random_numbers_and_saving_neither(tmp_path: Path) -> None:
    model = build("swin_t", 3)
    before = torch.get_rng_state()
    load(save(model, tmp_path / "model"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_network_is_in_evaluation_mode_and_the_saved_one_as_it_was(tmp_path: Path) -> None:
    model = SmallVGG().train()
    assert not any(module.training for module in load(save(model, tmp_path / "model")).modules())
    assert model.training


def test_about_comes_back(saved: Path) -> None:
    assert read_manifest(saved)["about"] == {"size": 32}


def test_about_may_have_numbers_as_keys_and_tuples(tmp_path: Path) -> None:
    path = save(SmallVGG(), tmp_path / "model", {"names": {10: "x", 9: "y"}, "size": (3, 4), "loss": float("nan")})
    load(path)
    assert read_manifest(path)["about"]["names"] == {"10": "x", "9": "y"}


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"steps": 3}

        def set_extra_state(self, _: Any) -> None: ...

    with pytest.raises(InputError, match="Sequential keeps '0._extra_state' in its state dict, no tensor"):
        save(nn.Sequential(Extra(2, 2)), tmp_path / "model")


def test_counts_that_contradict_the_weights_are_refused(tmp_path: Path) -> None:
    layer = nn.Conv2d(3, 4, 3)
    layer.out_channels = 9
    model = nn.Sequential(layer)
    with pytest.raises(CheckpointError, match=r"Sequential: module '0' says \(9, 3, 1\) channels, its weight has"):
        save(model, tmp_path / "model")


# ---- the files


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


# ---- damage and malice


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


def forge(path: Path, change: Callable[[dict[str, Any]], Any], weights: bytes | None = None) -> None:
    """Change the manifest and make the hash right again, as someone with intent would."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    if weights is not None:
        (path / "model.safetensors").write_bytes(weights)
    fields = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(fields, sort_keys=True).encode() + (path / "model.safetensors").read_bytes()
    manifest["sha256"] = hashlib.sha256(text).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_the_forger_of_these_tests_is_a_good_one(saved: Path) -> None:
    forge(saved, lambda manifest: manifest.update(about={"size": 99}))
    load(saved)


def setting(module: str, key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda manifest: manifest["settings"].setdefault(module, {}).update({key: value})


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
        (lambda m: m.update(factory="torchvision/resnet18", arguments={"weights": "DEFAULT"}), "no argument 'weights'"),
        (lambda m: m.update(factory="timm/resnet18", arguments={"pretrained": True}), "takes no argument 'pretrained'"),
        (lambda m: m.update(factory="timm/resnet18", arguments={"checkpoint_path": "x"}), "argument 'checkpoint_path'"),
        (lambda m: m.update(factory="resnet18", arguments={}), "module '' cannot have class = .*SmallVGG.* in ResNet"),
        (lambda m: m.update(factory=3), "'factory' is missing or of a wrong type"),
        (lambda m: m.update(arguments={"stages": 5}), "factory 'prune_fe/vgg-small' cannot be built"),
        (lambda m: m.update(arguments={"stages": [["4"]]}), "factory 'prune_fe/vgg-small' cannot be built"),
        (lambda m: m.update(arguments={"classes": 10**30}), "factory 'prune_fe/vgg-small' cannot be built"),
        (lambda m: m.update(arguments={"classes": -1}), "factory 'prune_fe/vgg-small' cannot be built"),
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
    ("key", "value", "text"),
    [
        ("classifier.bias", torch.zeros(4, dtype=torch.int64), "'classifier.bias' is torch.int64"),
        ("classifier.bias", torch.zeros(4, 1), r"'classifier.bias' is torch.float32 \(4, 1\), the model has"),
        ("features.0.weight", torch.zeros(4, 3, 3), "'features.0.weight' is torch.float32"),
        ("features.0.weight", torch.zeros(5, 3, 3, 3), r"'features.0' says \(4, 3, 1\) channels, its weight has"),
        ("more", torch.zeros(1), "'more' is only in the file; another architecture"),
        ("classifier.bias", None, "'classifier.bias' is only in the model; another architecture"),
    ],
)
def test_forged_weights_are_refused_by_name(saved: Path, key: str, value: Tensor | None, text: str) -> None:
    from safetensors.torch import save as to_bytes

    tensors: dict[str, Any] = dict(load(saved).state_dict()) | {key: value}
    forge(saved, lambda manifest: None, to_bytes({k: v for k, v in tensors.items() if v is not None}))
    with pytest.raises(CheckpointError, match=text):
        load(saved)


def test_weights_that_are_no_safetensors_are_refused_and_not_unpickled(saved: Path) -> None:
    touched = saved.parent / "touched"
    forge(saved, lambda manifest: None, pickle.dumps(Evil(touched)))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(saved)
    assert not touched.exists()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"\xff\xfe", b"{}", b'{"format": NaN}', b"[" * 100_000, b'{"format": ' + b"1" * 9999]
)
def test_a_manifest_that_is_none_is_refused(saved: Path, content: bytes) -> None:
    (saved / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"manifest.json: (cannot be read|not a manifest|format nan)"):
        load(saved)


# What a pruned network was


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


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def test_the_original_of_a_pruned_network_is_built_with_weights_and_what_was_set_by_hand(tmp_path: Path) -> None:
    fresh = torchvision.models.resnet18(num_classes=1000)
    pruned = halved(torchvision.models.resnet18())
    pruned.fc = nn.Linear(256, 7)
    pruned.conv1.stride = (1, 1)  # type: ignore[assignment]
    before = torch.get_rng_state()
    save(pruned, tmp_path / "pruned")
    found = models.original(tmp_path / "pruned", 7)
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
    assert shapes(models.original(tmp_path / "saved", outputs, channels)) == shapes(model)


def test_an_original_that_cannot_be_known_is_asked_for(tmp_path: Path) -> None:
    save(Own(), tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"own holds a .*Own, whose constructor is not known; say with --against"):
        models.original(tmp_path / "own", 5)
    odd = torchvision.models.resnet18()
    odd.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    save(odd, tmp_path / "odd")
    with pytest.raises(CheckpointError, match=r"'conv1' has other kernels than the 7×7 of torchvision/resnet18; say"):
        models.original(tmp_path / "odd", 1000)
    save(SmallVGG(stages=[[4]]), tmp_path / "vgg")
    with pytest.raises(CheckpointError, match=r"its original cannot be built \(.*\); say with --against"):
        rewritten = json.loads((tmp_path / "vgg" / "manifest.json").read_text()) | {"factory": "prune_fe/resnet18"}
        (tmp_path / "vgg" / "manifest.json").write_text(json.dumps(rewritten))
        models.original(tmp_path / "vgg", 10)


def test_the_arguments_of_a_manifest_are_checked_before_the_original_is_built(tmp_path: Path) -> None:
    save(SmallVGG(stages=[[4]]), tmp_path / "vgg")
    file = tmp_path / "vgg" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"arguments": {"pretrained": True}}))
    with pytest.raises(CheckpointError, match="takes no argument 'pretrained'"):
        models.original(tmp_path / "vgg", 10)


class SplitBlock(nn.Module):
    """A user's own network that keeps the size of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.parts = 4, [2, 6]
        self.conv, self.inner, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.conv(x), self.width, 1)
        c, d = torch.split(torch.cat([a, self.inner(b)], 1), self.parts, 1)
        return self.head(torch.cat([d, c], 1).mean((2, 3)))


def test_sizes_that_a_network_keeps_come_back_with_it(tmp_path: Path) -> None:
    model, x = SplitBlock().eval(), torch.randn(2, 3, 5, 5)
    pruned = prune_fe.prune(model, prune_fe.score(model, scorer="random"), 0.5, x).model
    assert (pruned.width, pruned.parts) == (2, [1, 3])
    loaded = models.load(models.save(pruned, tmp_path / "own"), SplitBlock())
    assert torch.equal(loaded(x), pruned(x))
    res2net = models.build("timm/res2net50_26w_4s", 3).eval()
    images = torch.randn(2, 3, 32, 32)
    half = prune_fe.prune(res2net, prune_fe.score(res2net, scorer="random"), 0.5, images).model
    path = models.save(half, tmp_path / "res2net")
    with torch.no_grad():
        assert torch.equal(models.load(path)(images), half(images))
    assert models.original(path, 3)(images).shape == (2, 3)
