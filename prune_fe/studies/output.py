"""Write the output of a study to the run folder: numbers as CSV, tables as Markdown, and a chart as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prune_fe.charts import save_chart
from prune_fe.experiment.experiment import Experiment
from prune_fe.report.tables import Table


def write_study(
    experiment: Experiment,
    name: str,
    heading: str,
    tables: Sequence[Table],
    rows: Iterable[Mapping[str, Any]],
    chart: Any = None,
) -> None:
    """Write NAME.csv, NAME.md and, where there is a chart, NAME.svg to the run folder.

    Args:
        experiment: The experiment that was studied.
        name: Name of the files without their endings.
        heading: Heading of the Markdown file.
        tables: Tables of the Markdown file.
        rows: Lines of the CSV file.
        chart: An Altair chart.
    """
    folder, say = experiment.folder, experiment.reporter.say
    folder.write_table(f"{name}.csv", rows)
    folder.write_text(f"{name}.md", f"## {heading}\n\n" + "\n".join(table.markdown() for table in tables))
    say(f"results: {folder.path}/{name}.csv and .md, and the trained network for --resume {folder.path}")
    if chart is not None:
        save_chart(chart, folder.path / f"{name}.svg")
        say(f"figure: {folder.path}/{name}.svg")
