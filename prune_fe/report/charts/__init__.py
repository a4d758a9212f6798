"""Charts: one file and one function each. All share the theme, and `save_chart` draws any of them into a file."""

from prune_fe.report.charts.ablation_curves import ablation_curves
from prune_fe.report.charts.accuracy_against import accuracy_against
from prune_fe.report.charts.accuracy_bars import accuracy_bars
from prune_fe.report.charts.birth_times import birth_times
from prune_fe.report.charts.class_scatter import class_scatter
from prune_fe.report.charts.confusion import confusion_matrix
from prune_fe.report.charts.criterion_bars import criterion_bars
from prune_fe.report.charts.histogram import histogram
from prune_fe.report.charts.layer_profile import layer_profile
from prune_fe.report.charts.layer_status import layer_status
from prune_fe.report.charts.rank_correlation import rank_correlation
from prune_fe.report.charts.run_overview import run_overview
from prune_fe.report.charts.sample_size import sample_size
from prune_fe.report.charts.sensitivity_map import sensitivity_map
from prune_fe.report.charts.theme import save_chart, specification
from prune_fe.report.charts.trade_off import trade_off
from prune_fe.report.charts.training_course import training_course

__all__ = [
    "ablation_curves",
    "accuracy_against",
    "accuracy_bars",
    "birth_times",
    "class_scatter",
    "confusion_matrix",
    "criterion_bars",
    "histogram",
    "layer_profile",
    "layer_status",
    "rank_correlation",
    "run_overview",
    "sample_size",
    "save_chart",
    "sensitivity_map",
    "specification",
    "trade_off",
    "training_course",
]
