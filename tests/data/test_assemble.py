"""From stored images to splits: classes that fit, and how large the images are."""

from typing import Any

import pytest
import torch

from prune_fe.data.assemble import N_MEASURED, measure_sizes, require_equal_classes
from prune_fe.data.stored_images import StoredImages
from prune_fe.errors import DataError


class Boxes(StoredImages):
    """Images of which only the sizes are known; that of image 1 cannot be read."""

    def __init__(self, classes: str, labels: list[int]) -> None:
        super().__init__(tuple(classes), torch.tensor(labels), list(map(str, range(len(labels)))), torch.tensor(labels))

    def pixel_size(self, index: int) -> tuple[int, int]:
        if index == 1:
            raise DataError("damaged")
        return index, 2 * index


@pytest.mark.parametrize(
    ("train", "test", "text"),
    [
        (("ab", [0, 0]), ("ab", [0, 1]), "class 'b': 0 training images, at least 1 is needed"),
        (("ab", [0, 1]), ("ab", [1, 1]), "class 'a': 0 test images, at least 1 is needed"),
        (("ab", [0, 1]), ("ac", [0, 1]), "class 'b': the training images have it, the test images do not"),
        (("bc", [0, 1]), ("abc", [0, 1, 2]), "class 'a': the test images have it, the training images do not"),
        (("ab", [0, 1]), ("ba", [0, 1]), "the same in another order"),
    ],
)
def test_classes_that_differ_are_named(train: Any, test: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        require_equal_classes(Boxes(*train), Boxes(*test))
    require_equal_classes(Boxes("ab", [0, 1]), Boxes("ab", [1, 0, 1]))


def test_some_sizes_are_measured_and_damaged_images_left_out() -> None:
    assert measure_sizes(Boxes("a", [0] * 4)) == ((0, 0), (2, 4), (3, 6))
    many = measure_sizes(Boxes("a", [0] * 1000))
    assert len(many) == N_MEASURED
    assert many[-1] == (990, 1980)
