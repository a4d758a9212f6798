"""The paper's studies of single units: what rescaling, randomness and another characteristic do to each indicator.

Each study takes a Subject (a trained network, one of its layers, a unit and a class) and returns tables that have the
rows and columns of the paper's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prune_fe.data.images import Rescaled, Splits, held_out, targets_of
from prune_fe.errors import DataError, InputError
from prune_fe.experiment import recipe as recipes
from prune_fe.experiment.recipe import Recipe
from prune_fe.experiment.run import Reporter, load_data, placed, prepare, trained, untrained
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.io import nearest, safe_file_name
from prune_fe.measure.evaluate import evaluate
from prune_fe.report.tables import Table
from prune_fe.scorers import SCORERS, resolve_scorer
from prune_fe.scorers.base import Scorer
from prune_fe.scoring.score import check_judge, score_all
from prune_fe.scoring.scores import Array, Scores
from prune_fe.tracing.feature_maps import Layer, evaluating, find_layers, follow, observe

Fresh = Callable[[int], nn.Module]
"""Seed -> a network that has not been trained."""


@dataclass(frozen=True)
class Indicator:
    """A column: a scorer and which of its quantities is shown."""

    name: str
    scorer: str
    quantity: str
    form: str = ".3g"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for indicators that one scorer gives."""
        return f"{self.scorer} {sorted(self.settings.items())}"

    @property
    def compares_classes(self) -> bool:
        return SCORERS[self.scorer].compares_classes

    def judge(self, label: int) -> Scorer:
        """The scorer, for the study of class `label`."""
        return resolve_scorer(self.scorer, self.settings).for_class(label)


H = Indicator("H", "feature-entropy", "feature_entropy_nats", ".2f")
RATE = Indicator("ε", "feature-entropy", "selective_rate", ".2f")
INDICATORS = {
    "tables 1, 2, 6, 7": (
        Indicator("L1-norm", "l1-activation", "l1_activation", ".1f"),
        Indicator("APoZ", "apoz", "zero_share", ".2%"),
        Indicator("class selectivity, μ_c − μ_rest", "class-selectivity", "class_selectivity", ".3f",
                  {"form": "difference"}),
        Indicator("class selectivity, index", "class-selectivity", "class_selectivity", ".2f"),
        H,
        RATE,
    ),
    "tables 9, 10": (
        Indicator("FPGM", "fpgm", "fpgm_distance", ".2f"),
        Indicator("NISP", "nisp", "nisp_score"),
        # Without the rank correlations and with paths of length one, the scores are linear in the responses.
        Indicator("NISP, α = 1, r = 1e-6", "nisp", "nisp_score", ".3g", {"alpha": 1.0, "r": 1e-6}),
        H,
    ),
    "further criteria": (
        Indicator("filter L1", "l1-filter", "l1_filter", ".2f"),
        Indicator("BN scale", "bn-scale", "bn_scale"),
        Indicator("mean activation", "mean-activation", "mean_activation"),
        Indicator("HRank", "hrank", "map_rank", ".2f"),
        Indicator("Taylor", "taylor", "taylor_importance", ".2e"),
    ),
}  # fmt: skip
"""Which table of the paper shows which indicator. APoZ is the share of zeros, and H and ε are not combined."""


CHARACTERISTICS: Mapping[str, Mapping[str, Any]] = {
    "birth time": {"characterise": "birth"},
    "maximum": {"characterise": "maximum"},
    "integration": {"characterise": "integral"},
    "cubical, birth time": {"complex": "cubical"},
}
"""What table 5 and appendix A.2 put in the place of the birth time: settings of feature entropy."""

ACCURACY = {"accuracy": ".2%", "of the class": ".2%"}
"""On the test images."""


@dataclass(frozen=True)
class Subject:
    """What is studied: one unit of one layer, on the images of one class.

    samples: training images of the class; of every class where classes are compared.
    """

    network: nn.Module
    splits: Splits
    layer: Layer
    unit: int
    label: int
    samples: int
    seed: int = 0
    batch_size: int = 64
    workers: int = 0

    @property
    def example(self) -> Tensor:
        """One image, on the network's device."""
        return self.splits.test[0][0][None].to(next(self.network.parameters()).device)

    @property
    def text(self) -> str:
        size = "×".join(map(str, self.layer.map_size))
        return (
            f"unit {self.unit} of {self.layer.name!r} ({self.layer.units} units, maps of {size}), "
            f"class {self.splits.classes[self.label]!r}, {self.samples} training images"
        )

    def file_name(self, kind: str) -> str:
        """Of letters, digits, dots and dashes, another one for every subject of a run."""
        layer = safe_file_name(self.layer.name)
        of = f"seed-{self.seed}-{layer}-unit-{self.unit}-class-{self.label}-samples-{self.samples}"
        return f"study-{kind}-{of}"

    def with_unit(self, unit: int | None) -> Subject:
        """With unit number `unit`; None: with the one of least H/ε that has a birth in half of the images (two equal
        births among 20 images are H = 0, and no good unit), or in any if there is no such one."""
        if unit is None:
            raw = self.scores({H.scorer: H.judge(self.label)})[H.scorer].raw
            ratio, rate = (raw[name][self.layer.name][0] for name in ("entropy_per_rate_nats", RATE.quantity))
            often = np.where(rate >= 0.5, ratio, np.inf)
            return replace(self, unit=int(np.argmin(often if np.isfinite(often).any() else ratio)))
        if not 0 <= unit < self.layer.units:
            raise InputError(f"layer {self.layer.name!r}: no unit {unit}, it has {self.layer.units}")
        return replace(self, unit=unit)

    @cached_property
    def refused(self) -> dict[str, str]:
        """Indicator -> why it cannot judge the layer. Feature entropy must: its error is raised."""
        why = {}
        for indicator in (each for group in INDICATORS.values() for each in group):
            judge = indicator.judge(self.label)
            try:
                labels = set(range(len(self.splits.classes)))
                check_judge(judge, self.network, [self.layer], self.example, self.samples, labels)
            except InputError as error:
                if indicator.scorer == H.scorer:
                    raise
                why[indicator.name] = str(error)
        return why

    def scores(
        self,
        judges: Mapping[str, Scorer],
        *,
        network: nn.Module | None = None,
        factor: float = 1.0,
        every: bool = False,
    ) -> dict[str, Scores]:
        """Scores of the layer on the class's images multiplied by `factor`; with `every`, on those of all classes."""
        return score_all(
            network or self.network, Rescaled(self.splits.train, factor), judges, layers=[self.layer.name],
            classes=None if every else [self.label], samples=self.samples, seed=self.seed,
            batch_size=self.batch_size, workers=self.workers,
        )  # fmt: skip


def study(
    kind: str,
    recipe: Recipe,
    folder: RunFolder,
    report: Reporter,
    seed: int | None = None,
    layer: str | None = None,
    unit: int | None = None,
    label: str | None = None,
    samples: int | None = None,
) -> list[Table]:
    """One of STUDIES, of the network that `recipe` trains with `seed` (default its first); what is not given is the
    last convolution, the unit of with_unit(None), the first class, the recipe's number of samples.

    The tables are also in the run folder, as CSV and Markdown, in files of their own for each subject. A network that
    lies there is not trained again.
    """
    device = prepare(recipe.device, recipe.threads)
    seed = recipe.seeds[0] if seed is None else seed
    if seed not in recipe.seeds:
        raise InputError(f"seed {seed}: the recipe has {', '.join(map(str, recipe.seeds))}")
    splits = held_out(load_data(recipe, report), recipe.data.validation, seed)
    classes = splits.classes
    if label is not None and label not in classes:
        raise InputError(f"class {label!r}: no such class; {nearest(label, classes[:20])}")
    number = classes.index(label) if label is not None else 0
    have = min(targets_of(splits.train).count(each) for each in range(len(classes)))
    wanted = samples or recipe.score.samples or have
    if wanted > have:
        raise DataError(f"{wanted} samples asked for, the smallest class has {have} training images")

    def fresh(number: int) -> nn.Module:
        torch.manual_seed(number)
        return placed(untrained(recipe.model, splits), device)

    network, example = fresh(seed), splits.test[0][0][None].to(device)
    chosen = find_layers(network, example, [layer] if layer is not None else None)[-1]
    subject = Subject(network, splits, chosen, 0, number, wanted, seed, recipe.score.batch_size, recipe.workers)
    if unit is not None:
        subject = subject.with_unit(unit)
    for name, why in subject.refused.items():  # what is wrong with the layer is said before a network is trained
        report.say(f"{name} is left out: {why}")
    if kind == "randomness":
        shares_of(chosen)
    elif kind == "characterisation":
        for judge in CHARACTERISTICS.values():
            resolve_scorer(H.scorer, judge).check([chosen])
    folder.log_environment()
    # The recipe's own scorers judge nothing here, so that their faults are none.
    plain = recipe.model_copy(update={"scorers": [recipes.Scorer.model_validate("random")]})
    subject = replace(subject, network=trained(plain, splits, seed, folder, report, device))
    subject = subject.with_unit(unit)
    report.say(f"studying {subject.text}")
    tables = STUDIES[kind](subject, fresh)
    folder.log("study", kind=kind, seed=seed, subject=subject.text)
    name = subject.file_name(kind)
    folder.write_table(f"{name}.csv", [entry for table in tables for entry in table.entries()])
    heading = f"## {kind}: seed {seed}, {subject.text}\n\n"
    folder.write_text(f"{name}.md", heading + "\n".join(table.markdown() for table in tables))
    report.say(f"results: {folder.path}/{name}.csv and .md, and the trained network for --resume {folder.path}")
    return tables


def rescaling(subject: Subject, fresh: Fresh | None = None) -> list[Table]:
    """Tables 1, 6 and 9: the values of all images halved, those of the filters that make the layer's maps, and both;
    and the same for the mean of |value| over all units of the layer, as a share of what it is with nothing halved."""
    rows: dict[str, dict[str, Sequence[float]]] = {}
    shares: dict[str, dict[str, Sequence[float]]] = {}
    plain: dict[str, Array] = {}
    what = ""
    for images, filters in ((1.0, False), (0.5, False), (1.0, True), (0.5, True)):
        row = f"{'half scale' if images < 1 else '×'}, {'half scale' if filters else '×'}"
        network: nn.Module = subject.network
        acting: AbstractContextManager[Any] = nullcontext()
        if filters:
            network, acting, what = halved(subject.network, subject.layer, subject.example)
        with acting:
            found = evaluate(network, Rescaled(subject.splits.test, images), workers=subject.workers)
            values = indicated(subject, network, images)
        of_class = found.confusion[subject.label]
        quality = [found.accuracy], [int(of_class[subject.label]) / max(int(of_class.sum()), 1)]
        rows[row] = dict(zip(ACCURACY, quality, strict=True))
        rows[row] |= {name: [float(units[subject.unit])] for name, units in values.items()}
        plain = plain or values
        for name, units in values.items():
            if (of_all := abs(plain[name]).mean()) > 0:
                shares.setdefault(name, {})[row] = [float(abs(units).mean() / of_all)]
    note = f"images, filters (halved: {what}): {subject.text}"
    title = "Rescaling: mean over all units of the layer, share of what it is with nothing halved"
    return [*_by_paper("Rescaling", rows, ACCURACY, note), Table(title, dict.fromkeys(rows, ".2f"), shares)]


def randomness(
    subject: Subject, fresh: Callable[[int], nn.Module], units: int = 100, networks: int = 10
) -> list[Table]:
    """Tables 2, 7 and 10: the unit, all units of its layer, and `units` of networks that have not been trained.

    fresh(seed): such a network. As many are initialised as `networks`; each gives the same number of units, drawn
    with the seed.
    """
    shares = shares_of(subject.layer, units, networks)
    values = indicated(subject, subject.network)
    random: dict[str, list[float]] = {name: [] for name in values}
    for number, share in enumerate(shares):
        network = fresh(number).to(subject.example.device)
        generator = torch.Generator().manual_seed(number)
        drawn = torch.randperm(subject.layer.units, generator=generator)[:share].tolist()
        for name, of_units in indicated(subject, network).items():
            random[name] += of_units[drawn].tolist()
    rows = {
        "well-trained unit": {name: [float(of_units[subject.unit])] for name, of_units in values.items()},
        "all trained units of the layer": {name: of_units.tolist() for name, of_units in values.items()},
        f"{units} random-initialised units": random,
    }
    note = f"mean (standard deviation); {subject.text}; random units: from {networks} initialisations"
    return _by_paper("Randomness", rows, {}, note)


def shares_of(layer: Layer, units: int = 100, networks: int = 10) -> list[int]:
    """How many of `units` each network gives; InputError for a layer that has not so many."""
    shares = [len(part) for part in np.array_split(np.arange(units), networks)]
    if layer.units < max(shares):
        raise InputError(f"layer {layer.name!r} has {layer.units} units, {max(shares)} of each network are drawn")
    return shares


def characterisation(subject: Subject, fresh: Fresh | None = None) -> list[Table]:
    """Table 5 and appendix A.2: H when the Betti curve is characterised by its birth, maximum or integral, and what a
    cubical complex in the place of the clique complex leaves."""
    kinds = CHARACTERISTICS
    judges = {kind: resolve_scorer(H.scorer, settings) for kind, settings in kinds.items()}
    one, every = subject.scores(judges), subject.scores(judges, every=True)
    name, tables = subject.layer.name, []
    for indicator, title in ((H, "Characterisation: H in nats"), (RATE, "Characterisation: ε")):
        rows = {
            "reference unit": {kind: [_of_unit(one[kind], indicator, name)[subject.unit]] for kind in kinds},
            "layer": {kind: [one[kind].layer_mean(indicator.quantity, name)] for kind in kinds},
            f"layer ({len(every['birth time'].classes)} classes)": {
                kind: [every[kind].layer_mean(indicator.quantity, name)] for kind in kinds
            },
        }
        tables.append(Table(title, dict.fromkeys(kinds, indicator.form), rows))
    seconds = {kind: [every[kind].own_seconds / (every[kind].images * subject.layer.units) * 1e6] for kind in kinds}
    cost = Table("Characterisation: µs a map", dict.fromkeys(kinds, ".3g"), {"layer": seconds}, subject.text)
    return [*tables, cost]


def indicated(subject: Subject, network: nn.Module, factor: float = 1.0) -> dict[str, Array]:
    """Indicator -> its value for every unit of the layer, (units,), in `network` on images multiplied by `factor`.

    An indicator that cannot judge the layer (filters of a residual block, a network that NISP cannot go through) is
    left out; subject.refused says why.
    """
    wanted = [each for group in INDICATORS.values() for each in group if each.name not in subject.refused]
    found: dict[str, Scores] = {}
    for every in (False, True):
        judges = {each.key: each.judge(subject.label) for each in wanted if each.compares_classes == every}
        found |= subject.scores(judges, network=network, factor=factor, every=every)
    return {each.name: _of_unit(found[each.key], each, subject.layer.name) for each in wanted}


def halved(network: nn.Module, layer: Layer, example: Tensor) -> tuple[nn.Module, AbstractContextManager[Any], str]:
    """(a copy of the network, a context it must be used in, what was done): the layer's maps have half the values.

    Of a convolution the filters are halved, with every constant on the way to the map (its bias, the mean and the
    shift of the batch norm behind it), so that the map is halved and nothing else changes. Where that does not halve
    the map (a group norm takes the scale away, a sigmoid is not proportional) and of what is no convolution, such as
    a residual block, the map itself is halved.
    """
    twin = copy.deepcopy(network)
    module = twin.get_submodule(layer.name)
    if isinstance(module, nn.Conv2d):
        norm = twin.get_submodule(layer.norm) if layer.norm else None
        constants = [module.bias] if norm is None else [module.bias, norm.running_mean, norm.bias]
        with torch.no_grad():
            for value in (module.weight, *constants):
                if isinstance(value, Tensor):
                    value.mul_(0.5)
        whole, half = _map_of(network, layer, example), _map_of(twin, layer, example)
        if torch.allclose(half, whole / 2, rtol=1e-3, atol=1e-3 * float(whole.abs().max())):
            return twin, nullcontext(), "the filters"
    same = copy.deepcopy(network)
    return same, follow(same, [layer], lambda layer, maps, in_place: maps * 0.5), "the maps, not the filters"


def _map_of(network: nn.Module, layer: Layer, example: Tensor) -> Tensor:
    found: list[Tensor] = []
    with evaluating(network), torch.no_grad(), observe(network, [layer], lambda _, maps: found.append(maps.clone())):
        network(example)
    return found[0]


def _by_paper(
    study: str, rows: Mapping[str, Mapping[str, Sequence[float]]], first: Mapping[str, str], note: str
) -> list[Table]:
    """The rows in the paper's tables: each with the columns `first`, and those of its own indicators that are known."""
    tables = []
    for title, indicators in INDICATORS.items():
        known = {name for cells in rows.values() for name in cells}
        shown = dict(first) | {each.name: each.form for each in indicators if each.name in known}
        parts = {row: {column: cells[column] for column in shown if column in cells} for row, cells in rows.items()}
        tables.append(Table(f"{study}: {title}", shown, parts, note))
    return tables


def _of_unit(scores: Scores, indicator: Indicator, layer: str) -> Array:
    """(units,): what per class is given, of the only class."""
    values = scores.raw[indicator.quantity][layer]
    return values[0] if values.ndim == 2 else values


STUDIES: Mapping[str, Callable[[Subject, Fresh], list[Table]]] = {
    "rescaling": rescaling,
    "randomness": randomness,
    "characterisation": characterisation,
}
