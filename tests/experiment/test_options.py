"""The options of the executor: what they allow, and how a command takes them."""

import pytest

from prune_fe.cli.app import main
from prune_fe.errors import InputError
from prune_fe.experiment.options import ExecutorOptions
from prune_fe.options import validate_options


@pytest.mark.parametrize("address", ["auto", "local", "10.0.0.1:6379", "head-node.cluster:6379", "[::1]:6379"])
def test_addresses(address: str) -> None:
    assert validate_options(ExecutorOptions, {"executor": "ray", "address": address}).address == address


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"executor": "ray", "address": "ray://x:10001"}, "address: string should match pattern"),
        ({"executor": "ray", "gpus_per_task": 2}, "gpus_per_task: input should be less than or equal to 1"),
        ({"executor": "ray", "cpus_per_task": 0}, "cpus_per_task: input should be greater than or equal to 1"),
        ({"executor": "dask"}, "executor: input should be 'local' or 'ray'"),
        ({"address": "auto"}, "address: only the executor ray has it; pass executor=ray"),
        ({"gpus_per_task": 0}, "gpus_per_task: only the executor ray has it"),
    ],
)
def test_what_is_refused(given: dict[str, object], text: str) -> None:
    with pytest.raises(InputError, match=text):
        validate_options(ExecutorOptions, given)


def test_the_commands_refuse_it_as_well(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    for words, text in (
        (["--executor", "ray", "--gpus-per-task", "2"], "--gpus-per-task"),
        (["--cpus-per-task", "2"], "only the executor ray has it"),
        (["--executor", "slurm"], "--executor"),
    ):
        assert main(["compare", "recipes/compare-digits.yaml", "--output", str(tmp_path), *words]) == 2
        assert text in capsys.readouterr().err
