"""Tensors: buffers, ties and shared memory come back, forged ones are refused."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_fe.errors import CheckpointError, InputError
from prune_fe.models.build import build
from prune_fe.models.saved import load, save
from prune_fe.models.small_vgg import SmallVGG
from tests.models.networks import Evil, Own, Tied, forge, images, outputs


def test_buffers_come_back_of_every_kind(tmp_path: Path) -> None:
    model: Any = Own()
    model.grey, model.scale = torch.tensor([7, 8, 9], dtype=torch.int32), torch.tensor(0.25)
    model.norm.num_batches_tracked += 5
    back: Any = load(save(model, tmp_path / "own"), model=Own())
    assert torch.equal(back.grey, model.grey)
    assert back.grey.dtype == torch.int32
    assert back.scale == 0.25, "a buffer outside the state dict"
    assert back.norm.num_batches_tracked == 5


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


def test_tensors_that_were_tied_after_they_were_built_come_back_tied(tmp_path: Path) -> None:
    model: Any = build("resnet18", 3).eval()
    first, second = model.layer1
    second.conv1.weight, second.bn1.running_mean = first.conv1.weight, first.bn1.running_mean
    back: Any = load(save(model, tmp_path / "library"))
    assert back.layer1[1].conv1.weight is back.layer1[0].conv1.weight
    assert back.layer1[1].bn1.running_mean is back.layer1[0].bn1.running_mean
    assert torch.equal(outputs(back, images(32)), outputs(model, images(32)))
    own: Any = Own()
    own.scale, own.second.bias = own.grey, own.norm.bias
    again: Any = load(save(own, tmp_path / "own"), Own())
    assert again.second.bias is again.norm.bias
    assert again.scale is again.grey


def test_a_tensor_that_was_untied_comes_back_by_itself(tmp_path: Path) -> None:
    model: Any = Tied()
    model.second.weight = nn.Parameter(torch.eye(4))
    back: Any = load(save(model, tmp_path / "untied"), Tied())
    assert back.second.weight is not back.first.weight
    assert torch.equal(back.first.weight, model.first.weight)
    assert torch.equal(back.second.weight, torch.eye(4))
    save(Tied(), tmp_path / "tied")
    forge(tmp_path / "tied", lambda manifest: manifest.pop("tied"))
    old: Any = load(tmp_path / "tied", Tied())
    assert old.second.weight is old.first.weight, "as the constructor ties it: earlier files have no list"


def test_half_precision_and_channels_last_come_back(tmp_path: Path) -> None:
    model = SmallVGG(4, 3, [[4]]).to(torch.bfloat16).to(memory_format=torch.channels_last)
    back: Any = load(save(model, tmp_path / "model"))
    assert back.classifier.weight.dtype == torch.bfloat16
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in model.state_dict().items())
    strides = {key: value.stride() for key, value in model.state_dict().items()}
    assert {key: value.stride() for key, value in back.state_dict().items()} == strides
    plain = load(save(SmallVGG(4, 3, [[4]]), tmp_path / "plain")).state_dict()
    assert plain["features.0.weight"].stride() != strides["features.0.weight"]


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
