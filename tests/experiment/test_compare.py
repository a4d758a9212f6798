"""A small comparison: what is in it, that nothing is done twice, and what happens when something fails."""

import copy
import dataclasses
import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import prune_fe
from prune_fe.cli.app import main
from prune_fe.data.splits import hold_out
from prune_fe.errors import CheckpointError, EnvironmentFault, InputError
from prune_fe.experiment import compare, experiment, steps, tasks, teacher, tuning
from prune_fe.experiment.recipe import Recipe, with_controls
from prune_fe.experiment.results import TUNED, UNPRUNED, load_result
from prune_fe.experiment.run_folder import RunFolder
from prune_fe.records import read_record, write_record
from prune_fe.report import report
from prune_fe.report.findings import Findings
from prune_fe.report.loading import load_findings
from prune_fe.training.options import PaperTrainOptions
from prune_fe.training.schedule import count_epochs
from tests.experiment.helpers import CELLS, CONTENT, RECIPE, SCORERS, Silent, fill

pytestmark = pytest.mark.xdist_group("compare")  # so that `filled` is made once


def test_every_cell_of_the_grid_is_there_with_its_controls(filled: Path, found: Findings) -> None:
    assert len(list((filled / "cells").glob("*.json"))) == CELLS == len(found.results)
    assert found.networks == ["one", "two"]
    assert found.scorers == SCORERS
    assert found.scratch == ["scratch#1", "scratch#2"]
    assert (found.goal, found.points, found.seeds, found.missing) == ("ratio", [0.25, 0.75], [0, 3], [])
    assert found.same_cost()


def test_pruned_networks_start_from_one_network_and_scratch_has_the_whole_budget(found: Findings) -> None:
    for network in found.networks:
        for seed in (0, 1):
            before = found.select(network, UNPRUNED)[seed].row.accuracy
            for scorer in (*found.scorers, *found.scratch):
                cells = [found.select(network, scorer, point)[seed] for point in found.points]
                assert {cell.row.accuracy_before for cell in cells} == {before}
                epochs = {"scratch#1": 2, "scratch#2": 4}.get(scorer, 1)
                assert [len(cell.epochs) - 1 for cell in cells] == [epochs] * 2
    one = found.select("one", "random", 0.75)[0]
    assert {layer: len(units) for layer, units in one.removed.items()} == {"features.0": 3, "features.4": 6}
    assert one.removed != found.select("one", "random", 0.75)[1].removed


def test_a_cell_is_what_the_steps_give_by_hand(filled: Path, found: Findings) -> None:
    network = prune_fe.load(filled / "networks/one/seed-3/trained")
    splits = hold_out(prune_fe.digits(12), RECIPE.data.validation, 3)
    scores = prune_fe.score(network, splits.train, "apoz", samples=10, seed=3)
    example = splits.test[0][0][None]
    pruned = prune_fe.prune(network, scores, ratio=0.75, example=example)
    cell = found.select("one", "zeros", 0.75)[1]
    assert {k: list(v) for step in pruned.steps for k, v in step.removed.items()} == cell.removed
    assert cell.row.accuracy_pruned == pytest.approx(prune_fe.evaluate(pruned.model, splits.test).accuracy, abs=0.003)
    assert cell.row.parameters == prune_fe.cost(pruned.model, example).parameters
    assert cell.correct.mean() == pytest.approx(cell.row.accuracy)


def test_nothing_is_done_twice(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compress", "measure", "fit", "tune_unpruned"):
        monkeypatch.setattr(compare, name, lambda *_, **__: pytest.fail("done again"))
    monkeypatch.setattr(experiment, "score_units", lambda *_, **__: pytest.fail("done again"))
    fill(filled)


def test_a_killed_comparison_loses_its_current_cell_and_no_more(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    gone = ["one.seed-0.zeros.ratio-0.25.json", "two.seed-3.scratch#1.ratio-0.75.json"]
    for name in gone:
        (folder / "cells" / name).unlink()
    real = compare.compress

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "compress", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(folder)
    monkeypatch.setattr(compare, "compress", real)
    assert [text.split(":")[0] for text in fill(folder) if "of the test images" in text] == [n[:-5] for n in gone]
    for name in gone:
        old, new = (load_result(where / "cells" / name) for where in (filled, folder))
        assert old.row.accuracy == new.row.accuracy
        np.testing.assert_array_equal(old.correct, new.correct)


def test_a_comparison_that_another_command_works_on_is_refused(filled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    (cell := folder / "cells" / "one.seed-0.zeros.ratio-0.25.json").unlink()
    other = RunFolder(folder, RECIPE.model_dump(mode="json"), comparison=True)
    with pytest.raises(EnvironmentFault, match=rf"c is in use by another run .process {os.getpid()}."):
        fill(folder)
    other.close()
    assert not cell.exists()
    fill(folder)
    assert cell.exists()


def test_bad_input_is_said_before_any_network_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "load_or_train", lambda *_: pytest.fail("trained"))

    def wrong(change: dict[str, Any], text: str) -> None:
        with pytest.raises(InputError, match=text):
            fill(tmp_path / "c", Recipe.model_validate(CONTENT | change))
        shutil.rmtree(tmp_path / "c", ignore_errors=True)

    wrong({"prune": {"ranking": "global"}}, "prune.ranking: a comparison takes the same share of every layer")
    wrong({"prune": {"ratio": "auto", "target_macs": 0.5}}, "prune.ratio: auto gives every criterion other widths")
    wrong({"data": {"source": "digits", "size": 6}}, "network 'one': feature-entropy: layer 'features.4': maps are 3×3")
    nowhere = {"networks": {"x": {"name": "no-such-net"}}}
    wrong({"compare": nowhere}, "network 'x': .*no-such-net")
    for faulty, text in (
        ({"ratios": [0.5], "target_macs": [0.5]}, "ratios and target_macs were given"),
        ({"ratios": [0.5, 0.5]}, "ratios: one of them is given twice"),
        ({"ratios": []}, "at least 1 item"),
        ({"networks": {"../x": {"name": "vgg-small"}}}, "String should match"),
    ):
        with pytest.raises(ValueError, match=text):
            Recipe.model_validate(CONTENT | {"compare": faulty})


def test_targets_are_operating_points_too(tmp_path: Path) -> None:
    compared = {"target_macs": [0.5], "scratch": []}
    recipe = Recipe.model_validate(CONTENT | {"compare": compared, "seeds": [0], "scorers": ["random"]})
    fill(tmp_path / "c", recipe)
    part = load_findings(tmp_path / "c")
    assert (part.goal, part.points, part.networks) == ("target_macs", [0.5], ["vgg-small"])
    cell = part.select("vgg-small", "random", 0.5)[0]
    assert cell.row.macs < 0.7 * part.select("vgg-small", UNPRUNED)[0].row.macs
    assert "multiply-adds left 0.5" in " ".join(
        text for text in report.report_markdown("", "", list(report.report_sections(part))).splitlines()
    )


def test_a_ratio_of_zero_is_a_point_of_its_own(tmp_path: Path) -> None:
    compared = {"ratios": [0.0, 0.5], "scratch": []}
    fill(tmp_path / "c", Recipe.model_validate(CONTENT | {"compare": compared, "seeds": [0], "scorers": ["random"]}))
    part = load_findings(tmp_path / "c")
    assert part.points == [0.0, 0.5]
    unpruned, none, half = (
        part.select("vgg-small", s, p)[0].row for s, p in ((UNPRUNED, None), ("random", 0.0), ("random", 0.5))
    )
    assert none.parameters == unpruned.parameters > half.parameters
    assert none.accuracy_pruned == pytest.approx(unpruned.accuracy)


def test_from_scratch_is_a_new_network_of_the_same_widths(filled: Path, found: Findings, tmp_path: Path) -> None:
    """Its first weights are as its constructor draws them, and not those that the trained network began with."""
    recipe = with_controls(RECIPE)
    folder = RunFolder.join(filled)
    comparison = compare.Comparison(experiment.begin(recipe, folder, Silent()))
    drawn: list[torch.nn.Module] = []

    def fit(_: Any, model: torch.nn.Module, *__: Any) -> list[Any]:
        drawn.append(copy.deepcopy(model))
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "fit", fit)
        comparison._from_scratch("one", 0, "scratch#1", 0.75, tmp_path / "x.json")
    cell = load_result(tmp_path / "x.json")
    assert cell.removed == found.select("one", "random", 0.75)[0].removed
    assert cell.row.parameters == found.select("one", "random", 0.75)[0].row.parameters
    torch.manual_seed(0 + compare.SEED_OFFSET)
    fresh = dict(comparison.select("one", 0).build_network().named_parameters())["features.4.weight"]
    outs, ins = ([u for u in range(n) if u not in cell.removed[f"features.{i}"]] for i, n in ((4, 8), (0, 4)))
    assert torch.equal(dict(drawn[0].named_parameters())["features.4.weight"], fresh[outs][:, ins])


def test_the_budget_is_what_the_control_was_trained_for(found: Findings) -> None:
    control = found.select("one", "random", 0.25)[0]
    assert compare.budget_of(RECIPE, control) == 1 + 1
    epochs = [{"number": number} for number in (0, 1, 2, 0, 1, 2)]  # two rounds of two epochs
    rounds = dataclasses.replace(control, epochs=epochs)
    assert compare.budget_of(RECIPE, rounds) == 1 + 4
    assert compare.budget_of(RECIPE.model_copy(update={"train": None}), rounds) == 4
    assert count_epochs(PaperTrainOptions()) == 3


def test_a_cell_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    small = {"seeds": [0], "scorers": ["apoz"], "compare": {"ratios": [0.5], "scratch": [1]}}
    recipe.write_text(yaml.safe_dump(CONTENT | small))
    real = compare.compress

    def diverges(at_point: Any, entry: Any, scores: Any) -> Any:
        if entry.label == "random":
            raise InputError("the loss is nan in epoch 1: lower lr (it is 9)")
        return real(at_point, entry, scores)

    monkeypatch.setattr(compare, "compress", diverges)
    assert main(["compare", str(recipe), "--output", str(tmp_path / "runs")]) == 2
    out = capsys.readouterr()
    assert (
        "1 task failed, and 1 more that need them; the first is cells.vgg-small.seed-0.random.ratio-0.5: the loss"
        in out.err
    )
    assert "report: " in out.out
    page = (tmp_path / "runs/t-1/report.md").read_text()
    assert "**missing**: Failed: cells.vgg-small.seed-0.random.ratio-0.5 (the loss is nan in epoch 1" in page
    part = load_findings(tmp_path / "runs/t-1")
    assert part.missing == [f"vgg-small: {scorer} at ratio 0.5: 0 of 1 seeds" for scorer in ("random", "scratch#1")]
    assert len(part.select("vgg-small", "l1-filter", 0.5)) == 1
    monkeypatch.setattr(tasks, "world_size", lambda: 2)  # the others would wait for a process that goes on alone
    words = ["compare", str(recipe), "--output", str(tmp_path / "runs"), "--resume", "auto"]
    assert main(words) == 2
    assert "prune-fe: cells.vgg-small.seed-0.random.ratio-0.5: the loss is nan in epoch 1" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(words) == 0
    assert "Failed" not in (tmp_path / "runs/t-1/report.md").read_text()


def test_a_damaged_network_says_what_to_do(filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled, tmp_path / "c", ignore=shutil.ignore_patterns("one.seed-0.zeros.ratio-0.25.json"))
    weights = tmp_path / "c/networks/one/seed-0/trained/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="trained.*; delete .*trained, and the next run makes it again"):
        fill(tmp_path / "c")


def test_what_cannot_be_pruned_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "load_or_train", lambda *_: pytest.fail("trained"))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(CONTENT))
    assert main(["compare", str(recipe), "--output", str(tmp_path / "runs"), "--set", "prune.protect=[nolayer]"]) == 2
    assert "network 'one': " in (said := capsys.readouterr().err)
    assert "nolayer" in said
    assert not any((tmp_path / "runs").iterdir())


def test_a_run_and_a_comparison_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = RECIPE.model_dump(mode="json")
    compared = RunFolder.create(tmp_path, "t", content, comparison=True)
    alone = RunFolder.create(tmp_path, "t", content)
    for folder in (compared, alone):
        folder.close()
    with pytest.raises(InputError, match="t-1 is the folder of a comparison: choose another one"):
        RunFolder.resume(compared.path, content)
    with pytest.raises(InputError, match="t-2 is not the folder of a comparison: choose another one"):
        RunFolder.resume(alone.path, content, comparison=True)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(CONTENT | {"name": "other"}))
    RunFolder.create(tmp_path, "other", content, comparison=True).close()
    assert main(["run", str(recipe), "--output", str(tmp_path), "--resume", "auto"]) == 2
    assert "no run of 'other' to resume" in capsys.readouterr().err


def test_points_that_are_close_have_cells_of_their_own() -> None:
    folder = RunFolder.__new__(RunFolder)
    folder.path = Path("f")
    splits, device = prune_fe.digits(12), torch.device("cpu")
    one = experiment.Experiment(RECIPE, splits, 0, device, folder, Path("f"), Silent()).with_network("one")
    assert one.result_path("apoz", 0.5) == Path("f/cells/one.seed-0.apoz.ratio-0.5.json")
    assert one.result_path("apoz", 0.5000001).name == "one.seed-0.apoz.ratio-0.5000001.json"
    assert one.result_path(UNPRUNED).name == "one.seed-0.unpruned.json"


def test_the_unpruned_network_is_fine_tuned_as_the_pruned_ones_are(filled: Path, found: Findings) -> None:
    assert found.tuned == [TUNED]
    for network in found.networks:
        for before, after in zip(found.select(network, UNPRUNED), found.select(network, TUNED), strict=True):
            assert after.row.accuracy_before == before.row.accuracy
            assert after.row.accuracy_finetuned == after.row.accuracy == after.correct.mean()
            assert (after.row.accuracy_pruned, after.goal, after.point, after.removed) == (None, None, None, {})
            assert (after.row.parameters, after.row.macs) == (before.row.parameters, before.row.macs)
            assert [epoch["number"] for epoch in after.epochs] == [0, 1]
    path = filled / "cells/two.seed-3.unpruned-fine-tuned.json"
    model, splits = prune_fe.load(filled / "networks/two/seed-3/trained"), hold_out(prune_fe.digits(12), 0.6, 3)
    prune_fe.finetune(
        model, splits.train, splits.validation, lr=0.01, schedule="cosine", epochs=1, batch_size=128, seed=3
    )
    assert load_result(path).row.accuracy == pytest.approx(prune_fe.evaluate(model, splits.test).accuracy, abs=0.003)


def test_the_unpruned_network_can_be_left_as_it_is(tmp_path: Path) -> None:
    small = {"seeds": [0], "scorers": ["random"], "compare": {"ratios": [0.5], "scratch": []}}
    tuning = CONTENT["finetune"] | {"unpruned": False}
    fill(tmp_path / "c", Recipe.model_validate(CONTENT | small | {"finetune": tuning}))
    assert not list((tmp_path / "c/cells").glob("*fine-tuned*"))
    part = load_findings(tmp_path / "c")
    assert (part.tuned, part.missing) == ([], [])


def test_one_teacher_serves_every_criterion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Path] = []
    real, taught, scratch = teacher.teacher_logits, list[Any](), list[Any]()

    def logits(*arguments: Any, **keywords: Any) -> Any:
        computed.append(arguments[0])
        return real(*arguments, **keywords)

    def fit(*arguments: Any) -> Any:
        taught.append(arguments[5])
        return real_fit(*arguments)

    def fit_from_scratch(*arguments: Any) -> Any:
        scratch.append(arguments[2])
        assert len(arguments) == 4  # no teacher
        return real_fit(*arguments)

    real_fit = steps.fit
    monkeypatch.setattr(teacher, "teacher_logits", logits)
    monkeypatch.setattr(tuning, "fit", fit)
    monkeypatch.setattr(compare, "fit", fit_from_scratch)
    section = CONTENT["finetune"] | {"distill": {"weight": 0.7}, "lr_by_layer": {"features.*": 0.1}}
    small = {"seeds": [0], "compare": {"ratios": [0.25, 0.75], "scratch": [1]}, "train": None, "finetune": section}
    recipe = Recipe.model_validate(CONTENT | small)
    fill(tmp_path / "c", recipe)
    assert len(computed) == 1
    assert len(taught) == 2 * len(SCORERS) + 1
    assert {tuple(each.shape) for each in taught} == {taught[0].shape}
    assert {(each.distill, tuple(each.lr_by_layer)) for each in scratch} == {(None, ())}
    # What goes on later reads them.
    (tmp_path / "c/cells/vgg-small.seed-0.zeros.ratio-0.25.json").unlink()
    fill(tmp_path / "c", recipe)
    assert len(computed) == 1


def test_a_budget_that_the_steps_do_not_fill_is_a_cosine(
    filled: Path, found: Findings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[Any] = []

    def keeps(*arguments: Any) -> Any:
        settings.append(arguments[2])
        raise InputError("enough")

    steps = CONTENT | {"train": {"lr": 0.05, "batch_size": 64, "schedule": "step"}}
    shutil.copytree(filled, tmp_path / "c", ignore=shutil.ignore_patterns("*scratch*"))
    recipe = Recipe.model_validate(steps)
    (tmp_path / "c/recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    monkeypatch.setattr(compare, "fit", keeps)
    with pytest.raises(InputError, match="tasks? failed"):
        fill(tmp_path / "c", recipe)
    # four steps from 0.05 on, and one epoch of fine-tuning
    assert {(each.schedule, each.epochs, each.lr) for each in settings} == {("cosine", 5, 0.05), ("cosine", 10, 0.05)}
    sections = list(report.report_sections(dataclasses.replace(found, recipe=recipe)))
    assert "Its learning rate follows a cosine" in report.report_markdown("", "", sections)
    whole = report.report_markdown("", "", list(report.report_sections(found)))
    assert "Its learning rate follows a cosine" not in whole


def test_a_comparison_may_go_on_elsewhere_but_not_with_other_images(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    shutil.copytree(filled, folder)
    elsewhere = RECIPE.model_copy(update={"device": "cpu", "threads": 2, "workers": 0})
    fill(folder, elsewhere)
    with pytest.raises(InputError, match="was begun with another recipe .different: finetune"):
        fill(folder, RECIPE.model_copy(update={"finetune": None}))
    content = read_record(folder / "test.json")
    write_record(folder / "test.json", content | {"labels": content["labels"][::-1]})
    with pytest.raises(InputError, match="was begun with other test images or classes"):
        fill(folder)


def test_a_label_of_a_control_is_the_controls() -> None:
    for label in ("random", "l1-filter"):
        with pytest.raises(InputError, match=f"the label '{label}' is a control's, give 'apoz' another one"):
            with_controls(Recipe.model_validate(CONTENT | {"scorers": [{"name": "apoz", "label": label}]}))


def test_the_commands(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(CONTENT | {"name": "t", "seeds": [0]}))
    words = ["compare", str(recipe), "--output", str(tmp_path / "runs"), "--set", "compare.scratch=[]"]
    words += ["--set", "compare.networks={}", "--set", "compare.ratios=[0.5]"]
    assert main(words) == 0
    assert "report: " in capsys.readouterr().out
    page = tmp_path / "runs/t-1/report.html"
    first = page.read_text()
    page.unlink()
    assert main([*words, "--resume", "auto"]) == 0
    assert page.read_text() == first
    page.unlink()
    assert main(["report", str(page.parent)]) == 0
    assert page.read_text() == first
    assert main(["report", str(tmp_path)]) == 2
    assert "nothing of `prune-fe run`" in capsys.readouterr().err


def test_a_full_disk_costs_the_current_cell_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    small = {"seeds": [0], "scorers": ["apoz"], "compare": {"ratios": [0.5], "scratch": []}}
    recipe.write_text(yaml.safe_dump(CONTENT | small))
    words, real = ["compare", str(recipe), "--output", str(tmp_path / "runs")], os.replace

    def full(source: Any, target: Any) -> None:
        if "cells/" in str(target) and "random.ratio" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert main(words) == 5
    said = capsys.readouterr().err
    assert re.search(
        r"random.ratio-0.5.json: no space left, \d+ MiB free, 1 MiB needed on the disk of /.*; what is fin", said
    )
    monkeypatch.setattr(os, "replace", real)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs/t-1/cells").glob("[!.]*.json")}
    assert len(kept) == 2
    (tmp_path / "runs/t-1/cells/.half.json").write_text("{")  # as a kill leaves it
    assert main([*words, "--resume", "auto"]) == 0
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs/t-1/cells").glob("[!.]*.json")}
    assert len(now) == 5
    assert kept.items() <= now.items()
