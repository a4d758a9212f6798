"""The comparison of two networks, setting by setting. No test depends on how fast this machine is."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prune_fe import build, compare_latency
from prune_fe.errors import InputError
from prune_fe.measure.latency import CannotRun, Comparison
from prune_fe.models.small_vgg import SmallVGG
from tests.tracing.keeping import Keeping, state

CPU = torch.device("cpu")
EXAMPLE = torch.zeros(1, 3, 8, 8)
ONE: dict[str, Any] = {"batch_sizes": (2,), "threads": (1,), "memory_formats": ("contiguous",), "seconds": 1e-3}


class Logged(SmallVGG):
    """Notes every pass; in low precision, or for a batch that is too large, it refuses."""

    def __init__(self, log: list[Any], name: str) -> None:
        super().__init__(stages=[[4]])
        self.note: Callable[[Any], None] = log.append  # a method of the log is not copied with the network
        self.name = name

    def __deepcopy__(self, memo: Any) -> "Logged":
        twin = Logged([], self.name)
        twin.note = self.note
        twin.load_state_dict(self.state_dict())
        return twin

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.float32:
            raise NotImplementedError('"slow_conv2d_cpu" not implemented\nfor this one')
        self.note(
            (self.name, tuple(images.shape), torch.get_num_threads(), self.training, torch.is_inference_mode_enabled())
        )
        return super().forward(images)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_drift_of_the_machine_is_not_in_the_ratio(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything becomes slower by a third each block; the original takes 3, the pruned network 1 of it."""
    pace, need = [1.0], {"original": 3.0, "pruned": 1.0}
    original, pruned = (Logged([], name) for name in need)

    def note(entry: Any) -> None:
        pace[0] *= 1.0001
        clock[0] += need[entry[0]] * pace[0]

    original.note = pruned.note = note
    (found,) = compare_latency(original, pruned, EXAMPLE, **ONE | {"seconds": 2000.0})
    assert isinstance(found, Comparison)
    assert found.original.median_ms > 1.01 * 3000  # it did drift
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.ratio == pytest.approx(3, rel=0.02)
    assert found.ratio_high / found.ratio_low < 1.01
    assert found.original.runs == found.pruned.runs >= 7


# The settings


@pytest.mark.usefixtures("_threads")
def test_every_combination_is_run_as_it_says_and_nothing_is_left_changed() -> None:
    log: list[Any] = []
    original, pruned = Logged(log, "A").train(), Logged(log, "B")
    torch.set_num_threads(1)
    ticks: list[tuple[int, int]] = []
    found = compare_latency(
        original, pruned, EXAMPLE, batch_sizes=(1, 3), threads=(1, 2), seconds=1e-3,
        progress=lambda done, total: ticks.append((done, total)),
    )  # fmt: skip
    assert [(s.setting.batch_size, s.setting.threads, s.setting.memory_format) for s in found] == [
        (batch, threads, layout) for layout in ("contiguous", "channels_last") for batch in (1, 3) for threads in (1, 2)
    ]
    assert ticks == [(done, 8) for done in range(1, 9)]
    assert {entry[:3] for entry in log} == {
        (name, (batch, 3, 8, 8), threads) for name in "AB" for batch in (1, 3) for threads in (1, 2)
    }
    assert not any(training for *_, training, _ in log)
    assert torch.get_num_threads() == 1
    assert original.training
    for each in found:
        assert isinstance(each, Comparison)
        assert 0 < each.original.low_ms <= each.original.median_ms <= each.original.high_ms
        assert (each.original.network, each.pruned.network, each.setting.device) == ("original", "pruned", "cpu")
        assert each.share == 1 / each.ratio


@pytest.mark.usefixtures("_threads")
def test_threads_are_restored_when_the_timing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        assert torch.get_num_threads() == 2
        raise KeyboardInterrupt

    torch.set_num_threads(1)
    monkeypatch.setattr("prune_fe.measure.latency.seconds_in_turn", fail)
    with pytest.raises(KeyboardInterrupt):
        compare_latency(SmallVGG(), SmallVGG(), EXAMPLE, **ONE | {"threads": (2,)})
    assert torch.get_num_threads() == 1


def test_dtype_and_memory_format_reach_weights_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(network: Any, images: Tensor) -> None:
        weight = network.features[0].weight
        assert weight.dtype == images.dtype
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert images.is_contiguous(memory_format=torch.channels_last)
        seen.append(images.dtype)

    monkeypatch.setattr(SmallVGG, "forward", look)
    network = SmallVGG(stages=[[4]])
    few = ONE | {"memory_formats": ("channels_last",)}
    compare_latency(network, network, EXAMPLE, dtypes=("float32", "bfloat16", "float16"), **few)
    assert set(seen) == {torch.float32, torch.bfloat16, torch.float16}
    assert network.features[0].weight.dtype == torch.float32


def test_a_setting_that_cannot_run_is_named_and_the_others_are_measured() -> None:
    found = compare_latency(SmallVGG(stages=[[4]]), Logged([], "B"), EXAMPLE, dtypes=("bfloat16", "float32"), **ONE)
    assert isinstance(found[0], CannotRun)
    assert isinstance(found[1], Comparison)
    assert str(found[0]) == (
        "batch 2, 1 thread, bfloat16, contiguous, cpu: cannot run: pruned: "
        '"slow_conv2d_cpu" not implemented for this one'
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_sizes": ()}, r"batch_sizes: \[\]; allowed: one or more whole numbers"),
        ({"threads": (0,)}, r"threads: \[0\]; allowed: one or more whole numbers, 1 or greater"),
        ({"dtypes": ("int8",)}, r"dtypes: \['int8'\]; allowed: one or more of float32, bfloat16, float16"),
        ({"memory_formats": ("nhwc",)}, "allowed: one or more of contiguous, channels_last"),
        ({"seconds": 0.0}, "seconds: 0.0; allowed: greater than 0"),
        ({"seconds": float("nan")}, "seconds: nan"),
    ],
)
def test_a_wrong_setting_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_latency(SmallVGG(), SmallVGG(), EXAMPLE, **ONE | changed)


def test_a_wrong_example_or_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"example is \(8,\); it must hold an image"):
        compare_latency(SmallVGG(), SmallVGG(), EXAMPLE[0, 0, 0])
    with pytest.raises(InputError, match=r"batch_sizes: \[2\]; allowed: \[1\], .* different first sizes"):
        compare_latency(SmallVGG(), SmallVGG(), (EXAMPLE, torch.zeros(9)), batch_sizes=[2])
    with pytest.raises(InputError, match="pruned is a ReLU without any parameters"):
        compare_latency(SmallVGG(), nn.ReLU(), EXAMPLE)


# Peak memory


@pytest.mark.parametrize(("inplace", "maps"), [(False, 2), (True, 1)])
def test_the_peak_is_that_of_a_case_computed_by_hand(inplace: bool, maps: int) -> None:
    """256 images of 4×4: 16 KiB; the convolution's weight: 8 bytes; its two maps: 32 KiB, and 32 more behind a ReLU
    that does not work in place; the view costs nothing, and what is done with is gone when the means come."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace), nn.Flatten(), nn.AvgPool1d(4))
    few = ONE | {"batch_sizes": (256,)}
    (found,) = compare_latency(network, network, torch.zeros(1, 1, 4, 4), **few)
    assert isinstance(found, Comparison)
    pooled = 0 if not inplace else 8  # KiB; beside one map it is the peak
    assert found.original.peak_mib * 2**20 == 8 + 1024 * (16 + 32 * maps + pooled)


def test_the_peak_does_not_depend_on_threads_and_halves_in_half_precision() -> None:
    network, few = SmallVGG(stages=[[8]]), ONE | {"threads": (1, 2), "batch_sizes": (64,)}
    found = compare_latency(network, network, EXAMPLE, dtypes=("float32", "bfloat16"), **few)
    one, two, half, _ = (each.pruned.peak_mib for each in found if isinstance(each, Comparison))
    assert one == two
    assert half == pytest.approx(one / 2, rel=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_time_and_peak_are_those_of_the_gpu() -> None:
    network = SmallVGG().cuda()
    ballast = torch.zeros(2**26, device="cuda")  # 256 MiB that are not the network's
    (found,) = compare_latency(network, network, EXAMPLE, **ONE)
    assert isinstance(found, Comparison)
    assert found.setting.device == "cuda:0"
    assert 0 < found.pruned.peak_mib < 100 < ballast.nbytes / 2**20


def test_networks_of_the_libraries_are_timed() -> None:
    (found,) = compare_latency(build("resnet18", 10), build("mobilenet_v2", 10), torch.zeros(1, 3, 32, 32), **ONE)
    assert isinstance(found, Comparison)


def test_networks_that_keep_their_last_maps_are_timed_and_left_as_they_were() -> None:
    model, x = Keeping(), torch.randn(1, 3, 6, 6)
    model(x).sum().backward()
    before = state(model)
    (found,) = compare_latency(model, model, x, **ONE)
    assert isinstance(found, Comparison)
    assert all(before[key] is value for key, value in state(model).items())
    assert len(model.history) == 1
    model.second.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match="Keeping cannot be copied: .*; it is attribute 'lock' of layer 'second'"):
        compare_latency(model, model, x, **ONE)
