"""prune-fe compare: compare the scorers of a recipe."""

from __future__ import annotations

import dataclasses

from prune_fe.cli.output import console, reporter
from prune_fe.cli.parameters import RecipeFlags, RecipePath, Seeds
from prune_fe.cli.run_folders import open_run, using
from prune_fe.errors import PruneFEError


def compare(recipe: RecipePath, *, flags: RecipeFlags = RecipeFlags(), seed: Seeds = None) -> None:
    """Compare the scorers of a recipe at several ratios, for several seeds and networks, and write a report.

    Random units, filter L1 and the pruned architectures trained from scratch are part of every comparison. Finished
    results are kept: the same command with --resume continues an interrupted comparison. Run on other GPUs or machines
    that see the folder, it shares the work. With torchrun (torchrun -m prune_fe compare ...), several processes work on
    each network together.
    """
    from prune_fe.distributed import from_rank_0, process_group, rank

    with process_group():
        console.quiet = rank() > 0
        opened = []

        def open_on_rank_0() -> str:
            opened.append(open_run(recipe, flags, seed, shared=True))
            return str(opened[0][1].path)

        # One process creates the folder, and the others open it.
        path = from_rank_0(open_on_rank_0)
        if rank() > 0:
            flags = dataclasses.replace(flags, resume=path)
            opened.append(open_run(recipe, flags, seed, shared=True))
        [(checked, folder)] = opened
        from prune_fe.experiment.compare import compare as run_comparison
        from prune_fe.report.report import write_report

        with using(folder, flags.resume):
            fault: PruneFEError | None = None
            try:
                run_comparison(checked, folder, reporter)
            except PruneFEError as error:  # Some results failed; the report shows the others.
                fault = error
            if rank() == 0 and any(folder.path.glob("cells/[!.]*")):
                page = write_report(folder.path)
                reporter.say(f"report: {page}   (report.md, report.json and cells.csv beside it)")
            if fault is not None:
                raise fault
