"""The flags that several commands share."""

import pytest

from prune_fe.cli.parameters import DataFlags, ModelFlags, RecipeFlags
from tests.cli.helpers import refused


def test_flags_have_the_defaults_that_the_help_says():
    assert (DataFlags().data, DataFlags().source, DataFlags().validation) == (None, None, 0.1)
    assert (RecipeFlags().resume, str(RecipeFlags().output)) == (None, "runs")
    assert ModelFlags(model="vgg-small").checkpoint is None


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "CPU"])
def test_an_unknown_device_is_refused(capsys, device):
    message = refused(capsys, 2, "score", "--model", "m", "--device", device)
    assert "Allowed are auto, cpu, cuda, cuda:N and mps." in message


@pytest.mark.parametrize("share", ["0", "1", "-0.5"])
def test_validation_is_a_share(capsys, share):
    message = refused(capsys, 2, "finetune", "--model", "m", "--data", "digits", "--validation", share)
    assert "--validation" in message
