"""prune-fe compare: compare the scorers of a recipe."""

from __future__ import annotations

import dataclasses

from prune_fe.cli.output import console, reporter
from prune_fe.cli.parameters import ExecutorFlags, RecipeFlags, RecipePath, Seeds
from prune_fe.cli.run_folders import join_run, open_run, using
from prune_fe.errors import PruneFEError
from prune_fe.experiment.options import ExecutorOptions


def compare(
    recipe: RecipePath,
    *,
    flags: RecipeFlags = RecipeFlags(),
    seed: Seeds = None,
    executor: ExecutorFlags = ExecutorOptions(),
) -> None:
    """Compare the scorers of a recipe at several ratios, for several seeds and networks, and write a report.

    Random units, filter L1 and the pruned architectures trained from scratch are part of every comparison. Finished
    results are kept: the same command with --resume continues an interrupted comparison. With --executor ray, many
    networks are worked on at a time, on one machine or on a cluster. With torchrun (torchrun -m prune_fe compare ...),
    several processes work on each network together.
    """
    from prune_fe.distributed import from_rank_0, process_group, rank

    with process_group():
        console.quiet = console.quiet or rank() > 0
        opened = []

        def open_on_rank_0() -> str:
            opened.append(open_run(recipe, flags, seed, comparison=True))
            return str(opened[0][1].path)

        # One process creates and locks the folder, and the others join it.
        path = from_rank_0(open_on_rank_0)
        if rank() > 0:
            flags = dataclasses.replace(flags, resume=path)
            opened.append(join_run(recipe, flags, seed))
        [(checked, folder)] = opened
        from prune_fe.experiment.compare import compare as run_comparison
        from prune_fe.experiment.executors import open_executor
        from prune_fe.report.report import write_report

        with using(folder, flags.resume):
            fault: PruneFEError | None = None
            with open_executor(executor, checked, folder, reporter) as chosen:
                try:
                    run_comparison(checked, folder, reporter, chosen)
                except PruneFEError as error:  # Some results failed; the report shows the others.
                    fault = error
            if rank() == 0 and any(folder.path.glob("cells/[!.]*")):
                page = write_report(folder.path)
                reporter.say(f"report: {page}   (report.md, report.json and cells.csv beside it)")
            if fault is not None:
                raise fault
