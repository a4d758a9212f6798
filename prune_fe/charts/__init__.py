"""Charts: one file and one function each. All share the theme, and `save_chart` draws any of them into a file."""

from prune_fe.charts.ablation_curves import ablation_curves
from prune_fe.charts.accuracy_against import accuracy_against
from prune_fe.charts.accuracy_bars import accuracy_bars
from prune_fe.charts.birth_times import birth_times
from prune_fe.charts.class_scatter import class_scatter
from prune_fe.charts.confusion import confusion_matrix
from prune_fe.charts.criterion_bars import criterion_bars
from prune_fe.charts.histogram import histogram
from prune_fe.charts.layer_profile import layer_profile
from prune_fe.charts.layer_status import layer_status
from prune_fe.charts.rank_correlation import rank_correlation
from prune_fe.charts.run_overview import run_overview
from prune_fe.charts.sample_size import sample_size
from prune_fe.charts.sensitivity_map import sensitivity_map
from prune_fe.charts.theme import save_chart, specification, standalone
from prune_fe.charts.trade_off import trade_off
from prune_fe.charts.training_course import training_course

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
    "standalone",
    "trade_off",
    "training_course",
]
