"""One experiment for each test, and one small comparison for all tests of comparisons."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from prune_fe.experiment.experiment import Experiment, begin
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.report import report
from prune_fe.report.findings import Findings
from prune_fe.report.loading import load_findings
from tests.experiment.helpers import ONE_NETWORK, Silent, fill


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("comparison")
    fill(folder)
    report.write_report(folder)
    torch.set_num_threads(before)
    return folder


@pytest.fixture(scope="session")
def found(filled: Path) -> Findings:
    return load_findings(filled)


@pytest.fixture
def experiment(tmp_path: Path) -> Iterator[Experiment]:
    recipe = Recipe.model_validate(ONE_NETWORK)
    with closing(RunFolder(tmp_path, recipe.model_dump(mode="json"))) as folder:
        yield begin(recipe, folder, Silent())
