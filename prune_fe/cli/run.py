"""prune-fe run: train, score, prune and fine-tune as a recipe says."""

from __future__ import annotations

from prune_fe.cli.output import console, reporter, say_next
from prune_fe.cli.parameters import ExecutorFlags, RecipeFlags, RecipePath, Seeds
from prune_fe.cli.run_folders import open_run, using
from prune_fe.data.registry import PATH_SOURCE
from prune_fe.errors import PruneFEError
from prune_fe.experiment.options import ExecutorOptions
from prune_fe.report.console import results_table


def run(
    recipe: RecipePath,
    *,
    flags: RecipeFlags = RecipeFlags(),
    seed: Seeds = None,
    executor: ExecutorFlags = ExecutorOptions(),
) -> None:
    """Train, score, prune and fine-tune as a recipe says, for each of its scorers, and print one table."""
    checked, folder = open_run(recipe, flags, seed)
    from prune_fe.experiment.executors import open_executor
    from prune_fe.experiment.run import run as run_recipe
    from prune_fe.report.report import write_report

    with using(folder, flags.resume), open_executor(executor, checked, folder, reporter) as chosen:
        rows = run_recipe(checked, folder, reporter, chosen)
    console.print(results_table(rows))
    last = folder.path / f"seed-{checked.seeds[-1]}" / checked.scorers[0].label / "pruned"
    reporter.say(f"results: {folder.path}/summary.csv, log.jsonl, and scores by unit in {last.parent}/scores.csv")
    try:
        reporter.say(f"report: {write_report(folder.path)}")
    except PruneFEError as error:  # The run itself has succeeded.
        reporter.say(f"no report: {error}")
    reporter.say(f"pruned model: {last}   (in Python: prune_fe.load({str(last)!r}))")
    source = (
        [] if checked.data.path is None or checked.data.source == PATH_SOURCE else ["--source", checked.data.source]
    )
    say_next("evaluate", "--model", last, "--data", checked.data.path or checked.data.source, *source)
    images = ("--data", flags.data) if flags.data else ()
    say_next("run", recipe, *images, "--set", "prune.ratio=0.7", "--seed", 0, 1, 2)
