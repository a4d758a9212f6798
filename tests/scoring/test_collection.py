"""One pass for several scorers, and what each of them costs."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers import SCORERS
from prune_fe.scorers.apoz import APoZ
from prune_fe.scoring.scores import load_scores
from tests.scoring.sample import READERS, Counting, Net, scored


def test_scorers_that_share_a_pass_give_what_each_gives_alone(net: Net, images: Counting) -> None:
    net, images.images = net.double(), images.images.double()
    together = scored(net, images, None, list(SCORERS))
    assert list(together) == list(SCORERS)
    for name, scores in together.items():
        alone = scored(net, images, None, [name])[name]
        for layer in alone.keep:
            np.testing.assert_allclose(scores.keep[layer], alone.keep[layer], rtol=1e-9, err_msg=f"{name} {layer}")


def test_a_shared_pass_reads_each_image_once(net: Net, images: Counting) -> None:
    scored(net, images, None)
    assert images.reads == list(range(23))


def test_scores_know_what_they_cost(net: Net, images: Counting, tmp_path: Path) -> None:
    found = scored(net, images, tmp_path, [*READERS, "l1-filter"])
    for name, scores in found.items():
        assert 0 < scores.own_seconds <= scores.seconds
        assert scores.peak_bytes is None or scores.peak_bytes >= 0
        kept = load_scores(tmp_path / name)
        assert (kept.seconds, kept.own_seconds, kept.peak_bytes) == (
            scores.seconds,
            scores.own_seconds,
            scores.peak_bytes,
        )
    assert found["l1-filter"].seconds == found["l1-filter"].own_seconds
    network = [scores.seconds - scores.own_seconds for name, scores in found.items() if name in READERS]
    assert max(network) == pytest.approx(min(network))  # the same pass for all of them


def test_a_scorer_pays_for_its_own_measurements_only(net: Net, images: Counting) -> None:
    class Slow(APoZ):
        def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Any:
            time.sleep(0.05)
            return super().measure(maps, labels, classes)

    found = scored(net, images, None, {"slow": Slow(), "quick": APoZ()})
    # It sleeps in six batches and two layers, for 0.6 s in all; a busy machine may add to either.
    assert found["slow"].own_seconds - found["quick"].own_seconds > 0.3
    network = [scores.seconds - scores.own_seconds for scores in found.values()]
    assert network[0] == pytest.approx(network[1])  # what they share, and nothing of the other's


@pytest.mark.parametrize("name", READERS)
def test_the_batch_and_the_classes_of_a_map_that_is_not_finite_are_named(net: Net, images: Counting, name: str) -> None:
    images.images[13] = float("inf")
    with pytest.raises(InputError, match=r"layer '.*; the batch has images 12 to 15, of class .+"):
        scored(net, images, None, [name])
