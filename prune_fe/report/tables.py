"""Tables of measured numbers: as text, as Markdown and as entries of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prune_fe.measure.statistics import Estimate


@dataclass(frozen=True)
class Table:
    """rows: row -> column -> the values (a sequence) that stand there; of several, the mean and the standard deviation
    do. An Estimate stands there with its interval, a text as it is.

    forms: column -> its format.
    """

    title: str
    forms: Mapping[str, str]
    rows: Mapping[str, Mapping[str, Any]]
    note: str = ""

    def text(self, row: str, column: str) -> str:
        values = self.rows[row].get(column, ())
        if isinstance(values, str):
            return values
        if isinstance(values, Estimate):
            return values.text(self.forms[column])
        if len(values) < 2:
            return format(values[0], self.forms[column]) if len(values) else ""
        mean, spread = (format(f(values), self.forms[column]) for f in (np.mean, lambda v: np.std(v, ddof=1)))
        return f"{mean} ({spread})"

    def markdown(self) -> str:
        lines = [["", *self.forms], ["---", *["---:"] * len(self.forms)]]
        lines += [[row, *(self.text(row, column) for column in self.forms)] for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"### {self.title}\n\n{table}\n" + (f"\n{self.note}\n" if self.note else "")

    def entries(self) -> list[dict[str, Any]]:
        """A dictionary a cell that holds numbers, for a file; low and high: the ends of an Estimate's interval."""
        found = []
        for row, cells in self.rows.items():
            for column, values in cells.items():
                entry: dict[str, Any] = {"table": self.title, "row": row, "column": column}
                if isinstance(values, Estimate):
                    known = {"mean": values.mean, "deviation": None, "n": values.n}
                    found.append(entry | known | {"low": values.low, "high": values.high})
                elif not isinstance(values, str):
                    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
                    known = {"mean": float(np.mean(values)), "deviation": spread, "n": len(values)}
                    found.append(entry | known | {"low": None, "high": None})
        return found
