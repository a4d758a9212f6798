"""What several tests use."""

import functools
import importlib.util
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch and numba are imported: several processes with several threads each crawl.
    os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: the kernels run on the CPU, slowly


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of material beside the checkout; a test that needs it is skipped where it is missing."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared, which lies beside the checkout in continuous integration only")
    return path


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], Any]:
    """name -> the module of scripts/NAME.py."""

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def awkward_maps() -> Callable[[int], tuple[Tensor, Tensor, int]]:
    """seed -> (maps (images, units, height, width), labels, number of classes): ties, dead units, single units, single
    pixels, negative values, classes without images; two classes at least have some."""

    def draw(seed: int) -> tuple[Tensor, Tensor, int]:
        rng = np.random.default_rng(seed)
        images, units, height, width = rng.integers([2, 1, 1, 1], [12, 5, 7, 7])
        classes = int(rng.integers(2, 6))
        maps = rng.standard_normal((images, units, height, width))
        if rng.random() < 0.5:
            maps = maps.round()
        if rng.random() < 0.7:
            maps = maps.clip(min=0)
        maps[:, rng.random(units) < 0.2] = 0
        labels = rng.integers(0, classes, images)
        labels[0], labels[-1] = 0, classes - 1
        return torch.from_numpy(maps), torch.from_numpy(labels), classes

    return draw


@pytest.fixture(autouse=True, scope="session")
def _no_time_for_timing() -> Iterator[None]:
    """What a run times, it times for a second; no test looks at how long."""
    import prune_fe.experiment.steps
    from prune_fe.measure.cost import speed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune_fe.experiment.steps, "speed", functools.partial(speed, seconds=0.01))
        yield
