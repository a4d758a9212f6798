"""The study of characterisation on a small trained network: table 5 and appendix A.2."""

from dataclasses import replace

import numpy as np

from prune_fe.studies.characterisation import characterise
from prune_fe.studies.subject import Subject


def test_birth_time_maximum_and_integral_characterise_the_same_holes(subject: Subject) -> None:
    entropy, rate, cost = characterise(replace(subject, samples=10))
    kinds = ["birth time", "maximum", "integration"]
    assert list(entropy.rows) == ["reference unit", "layer", "layer (10 classes)"]
    for cells in rate.rows.values():
        assert len({cells[kind][0] for kind in kinds}) == 1  # a curve that is not zero has all three
    for cells in entropy.rows.values():
        assert all(0 < cells[kind][0] <= np.log(10) + 1e-9 for kind in kinds)
    # the maximum takes few values, the integral many
    layer = entropy.rows["layer"]
    assert layer["maximum"][0] < layer["birth time"][0] <= layer["integration"][0]
    assert cost.rows["layer"]["maximum"][0] > cost.rows["layer"]["birth time"][0]
