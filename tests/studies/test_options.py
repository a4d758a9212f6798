"""Options of the studies of units and of layers: what is refused, and that nothing heavy is imported for them."""

import subprocess
import sys

import pytest

from prune_fe.errors import InputError
from prune_fe.options import validate_options
from prune_fe.studies.options import LayersOptions, SubjectOptions


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"unit": -1}, "unit: input should be greater than or equal to 0"),
        ({"samples": 0}, "samples: input should be greater than or equal to 1"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"unti": 1}, "unti: unknown key; did you mean 'unit'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], match: str) -> None:
    with pytest.raises(InputError, match=match):
        validate_options(SubjectOptions, options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"random_seeds": 0}, "random_seeds: input should be greater than or equal to 1"),
        ({"random_classes": 0}, "random_classes: input should be greater than or equal to 1"),
        ({"layers": []}, "layers: list should have at least 1 item"),
    ],
)
def test_options_of_layers_out_of_range_are_refused(options: dict[str, int], match: str) -> None:
    with pytest.raises(InputError, match=match):
        validate_options(LayersOptions, options)


def test_the_defaults_are_left_to_the_study() -> None:
    assert SubjectOptions() == SubjectOptions(layer=None, unit=None, class_name=None, samples=None, seed=None)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, prune_fe.studies.options; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
