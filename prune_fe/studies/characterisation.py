"""The study of characterisation (table 5, appendix A.2): other descriptions of a Betti curve than its birth time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prune_fe.experiment.experiment import Reporter, begin
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.io import safe_file_name
from prune_fe.report.tables import Table
from prune_fe.scorers import resolve_scorer
from prune_fe.scorers.base import Scorer
from prune_fe.studies.indicators import RATE, H
from prune_fe.studies.options import SubjectOptions
from prune_fe.studies.subject import Subject, choose_subject, train_subject, write_unit_study

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "birth time": {"characterise": "birth"},
    "maximum": {"characterise": "maximum"},
    "integration": {"characterise": "integral"},
    "cubical, birth time": {"complex": "cubical"},
}
"""Column -> settings of feature entropy: what table 5 and appendix A.2 use instead of the birth time."""

STATE = "characterisation"
"""Name of the folder of the scores."""


def characterisation_study(
    recipe: Recipe, folder: RunFolder, reporter: Reporter, options: SubjectOptions | None = None
) -> list[Table]:
    """Measure feature entropy with the birth, maximum and integral of Betti curves (table 5 and appendix A.2).

    The tables are written to the run folder too, as study-characterisation-*.csv and .md. The network and the scores
    that are in the folder are not made again, and an unfinished pass over the images is continued.

    Args:
        recipe: Which network and images; its `score.classes` are those of the layer's mean.
        folder: The run folder.
        reporter: Where messages and progress go.
        options: Which unit, on which images; the defaults where it is None.

    Returns:
        Tables of H, of ε and of the run times.
    """
    options = options or SubjectOptions()
    experiment = begin(recipe, folder, reporter, options.seed)
    subject = choose_subject(experiment, options)
    # A layer whose maps a variant cannot read is an error before the network is trained.
    for scorer in build_variants().values():
        scorer.check([subject.layer])
    subject = train_subject(experiment, subject, options.unit)
    return write_unit_study(experiment, subject, "characterisation", characterise(subject))


def build_variants() -> dict[str, Scorer]:
    """Return feature entropy with the settings of each variant."""
    return {name: resolve_scorer(H.scorer, settings) for name, settings in VARIANTS.items()}


def characterise(subject: Subject) -> list[Table]:
    """Return table 5: H and ε when a Betti curve is described by its birth, maximum or integral, and the run times.

    A further column has a cubical complex in place of the clique complex.

    Args:
        subject: The unit, layer and class.
    """
    scorers = {safe_file_name(name): scorer for name, scorer in build_variants().items()}
    of_class, of_all = (
        dict(zip(VARIANTS, subject.score(scorers, STATE, all_classes=of_all).values(), strict=True))
        for of_all in (False, True)
    )
    layer, tables = subject.layer.name, []
    for indicator, title in ((H, "Characterisation: H in nats"), (RATE, "Characterisation: ε")):
        units = {name: indicator.unit_values(scores, layer) for name, scores in of_class.items()}
        rows = {
            "reference unit": {name: [values[subject.unit]] for name, values in units.items()},
            "layer": {name: [scores.layer_mean(indicator.quantity, layer)] for name, scores in of_class.items()},
            f"layer ({len(of_all['birth time'].classes)} classes)": {
                name: [scores.layer_mean(indicator.quantity, layer)] for name, scores in of_all.items()
            },
        }
        tables.append(Table(title, dict.fromkeys(VARIANTS, indicator.form), rows))
    microseconds = {
        name: [scores.own_seconds / (scores.images * subject.layer.units) * 1e6] for name, scores in of_all.items()
    }
    forms = dict.fromkeys(VARIANTS, ".3g")
    cost = Table("Characterisation: µs a map", forms, {"layer": microseconds}, subject.text)
    return [*tables, cost]
