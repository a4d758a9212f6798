"""Tests of mixed precision."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prune_fe.errors import InputError
from prune_fe.training.loop import finetune
from prune_fe.training.options import TrainOptions
from prune_fe.training.precision import autocast, has_half

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["with bfloat16", "without"])
def has_instructions(request, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return request.param


def test_a_cpu_computes_in_bfloat16_if_it_was_asked_for_and_can(has_instructions):
    assert has_half(CPU, "bfloat16") == has_instructions
    layer, inputs = nn.Linear(3, 2), torch.ones(1, 3)
    for amp in (True, False):
        with autocast(CPU, TrainOptions(amp=amp)):
            assert layer(inputs).dtype == (torch.bfloat16 if amp and has_instructions else torch.float32)


def test_training_in_bfloat16_differs_and_a_cpu_without_it_is_named(has_instructions, recwarn):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(8, 3), torch.arange(8) % 2)
    start = nn.Linear(3, 2).state_dict()
    trained = []
    for amp in (False, True):
        model = nn.Linear(3, 2)
        model.load_state_dict(start)
        finetune(model, data, data, amp=amp, lr=0.1, schedule="step", batch_size=4)
        trained.append(model.weight.detach())
    assert torch.equal(*trained) == (not has_instructions)
    notes = [str(warning.message) for warning in recwarn if "amp" in str(warning.message)]
    assert notes == ([] if has_instructions else ["amp: cpu has no bfloat16, so it computes in float32"])


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:amp")
def test_weights_of_half_precision_are_refused_in_one_line(dtype, amp):
    data = TensorDataset(torch.randn(8, 3, 4, 4), torch.arange(8) % 2)
    model = nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten()).to(dtype)
    text = rf"Sequential does not run on images \(8, 3, 4, 4\) of torch\.float32: its weights are {dtype}; make them"
    with pytest.raises(InputError, match=text) as caught:
        finetune(model, data, data, amp=amp)
    assert "\n" not in str(caught.value)
    finetune(model.float(), data, data, amp=amp)
    same = TensorDataset(torch.randn(8, 3, 4, 4, dtype=dtype), torch.arange(8) % 2)
    finetune(model.to(dtype), same, same, lr=0.1)
    with pytest.raises(InputError, match="expected input"):  # Another error keeps its own text.
        finetune(model, TensorDataset(torch.randn(8, 1, 4, 4, dtype=dtype), torch.arange(8) % 2), same)


def test_float16_scales_the_loss_and_leaves_out_steps_that_overflow(monkeypatch):
    monkeypatch.setattr("prune_fe.training.precision.has_half", lambda *_: True)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(8, 3), torch.arange(8) % 2)
    start, scales = nn.Linear(3, 2).state_dict(), []
    update = torch.amp.GradScaler.update

    def recorded(scaler):
        scales.append(scaler.get_scale())
        update(scaler)

    monkeypatch.setattr(torch.amp.GradScaler, "update", recorded)
    trained = []
    for amp in (False, True):
        model = nn.Linear(3, 2)
        model.load_state_dict(start)
        finetune(model, data, data, lr=0.1, batch_size=4, epochs=8, amp=amp, amp_dtype="float16")
        trained.append(model.weight.detach())
    assert scales[0] == 2.0**16
    assert len(scales) == 16
    torch.testing.assert_close(*trained, rtol=0.02, atol=0.01)
    assert not torch.equal(*trained)


def test_float16_on_a_cpu_is_named():
    data = TensorDataset(torch.randn(8, 3), torch.arange(8) % 2)
    with pytest.warns(UserWarning, match="amp: cpu has no float16, so it computes in float32"):
        finetune(nn.Linear(3, 2), data, data, epochs=1, amp=True, amp_dtype="float16")
