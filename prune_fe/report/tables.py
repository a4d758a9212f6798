"""Tables of measured numbers as text, Markdown, CSV and entries of a JSON file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prune_fe.io import csv_cell, write_text
from prune_fe.measure.statistics import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """A table of a study.

    Attributes:
        title: What the table holds.
        forms: Column -> its format specification.
        rows: Row -> column -> what was measured: a sequence of values, of which the mean and the standard deviation
            are printed; an `Estimate`, which is printed with its interval; or a text. A missing column is empty.
        note: A remark below the table.
    """

    title: str
    forms: Mapping[str, str]
    rows: Mapping[str, Mapping[str, Any]]
    note: str = ""

    def text(self, row: str, column: str) -> str:
        """Return a cell as it is printed."""
        values = self.rows[row].get(column, ())
        if isinstance(values, str):
            return values
        if isinstance(values, Estimate):
            return values.text(self.forms[column])
        if len(values) == 0:
            return ""
        mean = format(np.mean(values) if len(values) > 1 else values[0], self.forms[column])
        return f"{mean} ({np.std(values, ddof=1):{self.forms[column]}})" if len(values) > 1 else mean

    def markdown(self) -> str:
        """Return the table as Markdown, with its title as a heading."""
        rows = [[row, *(self.text(row, column) for column in self.forms)] for row in self.rows]
        table = markdown_table(["", *self.forms], rows)
        return f"### {self.title}\n\n{table}\n" + (f"\n{self.note}\n" if self.note else "")

    def entries(self) -> list[dict[str, Any]]:
        """Return one dictionary for each cell that holds numbers, for a JSON file.

        Returns:
            Keys table, row, column, mean, deviation (standard deviation of several values), n, and low and high: the
            ends of the interval of an `Estimate`.
        """
        entries = []
        for row, cells in self.rows.items():
            for column, values in cells.items():
                entry: dict[str, Any] = {"table": self.title, "row": row, "column": column}
                if isinstance(values, Estimate):
                    numbers = {"mean": values.mean, "deviation": None, "n": values.n}
                    entries.append(entry | numbers | {"low": values.low, "high": values.high})
                elif not isinstance(values, str) and len(values):
                    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
                    numbers = {"mean": float(np.mean(values)), "deviation": deviation, "n": len(values)}
                    entries.append(entry | numbers | {"low": None, "high": None})
        return entries


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is aligned left, the others right.

    >>> print(markdown_table(["", "accuracy"], [["random", "0.5"]]))
    |  | accuracy |
    | --- | ---: |
    | random | 0.5 |
    """
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_markdown(text: str) -> str:
    r"""Return a line of Markdown that shows a text as it is.

    >>> print(escape_markdown("a|b_c"))
    a\|b\_c
    """
    return "".join(f"\\{c}" if c in "\\|<>`*_[]#" else c for c in text).replace("\n", " ")


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a data frame without its index as CSV, whole or not at all; no cell is a formula for a spreadsheet."""
    write_text(path, frame.map(csv_cell).to_csv(index=False, lineterminator="\r\n"))
