"""Charts: one file and one function each. All share the theme, and `save_chart` draws any of them into a file."""

from prune_fe.report.charts.ablation_curves import ablation_curves
from prune_fe.report.charts.accuracy_against import accuracy_against
from prune_fe.report.charts.sample_size import sample_size
from prune_fe.report.charts.theme import save_chart, specification

__all__ = ["ablation_curves", "accuracy_against", "sample_size", "save_chart", "specification"]
