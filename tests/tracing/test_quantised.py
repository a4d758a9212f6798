"""Quantised networks are refused by name, and a pruned network can be quantised."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils.data import TensorDataset

import prune_fe
from prune_fe.errors import CheckpointError, InputError
from prune_fe.models.checkpoints import load_weights
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.tracing.quantised import find_quantised, is_quantised_name, require_float

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    quantization = pytest.importorskip("torch.ao.quantization", reason="this torch has no torch.ao.quantization")
    quantize_fx = pytest.importorskip("torch.ao.quantization.quantize_fx", reason="this torch has no quantize_fx")

pytestmark = pytest.mark.filterwarnings("ignore")
IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(IMAGES, torch.arange(8) % 4)
FIRST = "prune first, quantise afterwards$"


@pytest.fixture(scope="module", autouse=True)
def _engine() -> Iterator[None]:
    """Quantised kernels are chosen by the processor."""
    engine = torch.backends.quantized.engine
    if not {"x86", "qnnpack"} & set(torch.backends.quantized.supported_engines):
        pytest.skip("torch has no quantised kernels for this processor")
    yield
    torch.backends.quantized.engine = engine


def network() -> nn.Module:
    torch.manual_seed(0)
    return SmallVGG(4, 3, [[8, 8]]).eval()


def dynamic(model: nn.Module) -> nn.Module:
    return quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def prepared(model: nn.Module) -> GraphModule:
    mapping = quantization.get_default_qconfig_mapping(torch.backends.quantized.engine)
    return quantize_fx.prepare_fx(model.eval(), mapping, (IMAGES,))


def whole(model: nn.Module) -> nn.Module:
    observed = prepared(model)
    observed(IMAGES)
    return quantize_fx.convert_fx(observed)


def qat(model: nn.Module) -> GraphModule:
    mapping = quantization.get_default_qat_qconfig_mapping(torch.backends.quantized.engine)
    return quantize_fx.prepare_qat_fx(model.train(), mapping, (IMAGES,))


def pruned() -> nn.Module:
    model = network()
    scores = prune_fe.score(model, scorer="l1-filter", example=IMAGES[:1])
    return prune_fe.prune(model, scores, ratio=0.5, example=IMAGES[:1]).model


@pytest.mark.parametrize(
    ("quantise", "text"),
    [
        (dynamic, r"layer 'classifier' is quantised \(torch\.ao\.nn\.quantized\.dynamic\.\S+Linear\)"),
        (whole, r"layer 'features\.0' is quantised \(torch\.ao\.nn\.intrinsic\.quantized\.\S+ConvReLU2d\)"),
        (prepared, r"layer 'features\.0' is prepared for quantisation \(torch\.ao\.nn\.intrinsic\.\S+\)"),
        (qat, r"layer 'features\.0' is prepared for quantisation \(torch\.ao\.nn\.intrinsic\.qat\S+\)"),
    ],
)
def test_a_quantised_network_is_refused_by_name_and_a_pruned_one_can_be_quantised(
    tmp_path: Path, quantise: Callable[[nn.Module], nn.Module], text: str
) -> None:
    model = quantise(network())
    with pytest.raises(InputError, match=f"{text}; {FIRST}"):
        prune_fe.score(model, scorer="l1-filter", example=IMAGES[:1])
    with pytest.raises(InputError, match=f"{text}; {FIRST}"):
        prune_fe.prune(model, prune_fe.score(network(), scorer="l1-filter", example=IMAGES[:1]), example=IMAGES[:1])
    torch.save(model.state_dict(), tmp_path / "quantised.pth")
    with pytest.raises(CheckpointError, match=f"is of a quantised network; {FIRST}"):
        load_weights(network(), tmp_path / "quantised.pth")

    small, after = pruned(), quantise(pruned())
    logits, expected = after(IMAGES), small(IMAGES)
    assert len(next(small.parameters())) == 4
    if quantise is qat:  # Its norms are in training mode.
        assert logits.shape == expected.shape
    else:
        assert (logits - expected).abs().max() < 0.1 * expected.abs().max()
    if quantise is dynamic:
        assert prune_fe.evaluate(after, DATA).images == 8
    if quantise is whole:
        with pytest.raises(InputError, match=f"{text}, without floating-point weights; {FIRST}"):
            prune_fe.evaluate(after, DATA)


def test_a_network_without_gradients_is_neither_trained_nor_saved_but_one_in_preparation_is(tmp_path: Path) -> None:
    for quantise in (dynamic, whole):
        with pytest.raises(InputError, match=f"is quantised .*; {FIRST}"):
            prune_fe.finetune(quantise(network()), DATA, DATA)
        with pytest.raises(InputError, match=f"is quantised .*; {FIRST}"):
            prune_fe.save(quantise(network()), tmp_path / "saved")
    model = qat(pruned())
    epochs = prune_fe.finetune(model, DATA, DATA, lr=0.1, batch_size=4)
    assert epochs[1].train_loss > 0
    model.eval()
    assert quantize_fx.convert_fx(model)(IMAGES).shape == (8, 4)


def test_a_network_that_only_marks_what_may_be_quantised_is_not() -> None:
    model = nn.ModuleDict(
        {"stub": quantization.QuantStub(), "add": torch.ao.nn.quantized.FloatFunctional(), "conv": nn.Conv2d(3, 4, 1)}
    )
    assert find_quantised(model) is None
    require_float(model)
    require_float("anything else has other errors")


def test_a_quantised_tensor_is_found() -> None:
    model = nn.Module()
    model.register_buffer("table", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    assert find_quantised(model) == "Module is quantised (torch.Tensor)"
    assert not is_quantised_name("table.weight")
