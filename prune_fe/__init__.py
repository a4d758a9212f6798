"""prune_fe: compress CNNs, ablate their units and benchmark pruning criteria.

The names below are the public interface. They are imported when they are first used, so that the command line can
answer before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune_fe.ablation import Ablation, ablate, ablate_each, ablate_layers
    from prune_fe.costs import cost, speed
    from prune_fe.data import digits, folder
    from prune_fe.evaluation import evaluate
    from prune_fe.exporting import export
    from prune_fe.latency import compare_latency
    from prune_fe.layers import find_layers, mask, observe
    from prune_fe.models import build, load, save
    from prune_fe.pruning import prune
    from prune_fe.scorers import SCORERS
    from prune_fe.scores import Scores, load_scores
    from prune_fe.scoring import score, score_all
    from prune_fe.training import carry_over, finetune, recalibrate

_HOME = {
    "Ablation": "ablation",
    "SCORERS": "scorers",
    "Scores": "scores",
    "ablate": "ablation",
    "ablate_each": "ablation",
    "ablate_layers": "ablation",
    "build": "models",
    "carry_over": "training",
    "compare_latency": "latency",
    "cost": "costs",
    "digits": "data",
    "evaluate": "evaluation",
    "export": "exporting",
    "find_layers": "layers",
    "finetune": "training",
    "folder": "data",
    "load": "models",
    "load_scores": "scores",
    "mask": "layers",
    "observe": "layers",
    "prune": "pruning",
    "recalibrate": "training",
    "save": "models",
    "score": "scoring",
    "score_all": "scoring",
    "speed": "costs",
}

__all__ = [
    "SCORERS", "Ablation", "Scores", "ablate", "ablate_each", "ablate_layers", "build", "carry_over",
    "compare_latency", "cost", "digits", "evaluate", "export", "find_layers", "finetune", "folder", "load",
    "load_scores", "mask", "observe", "prune", "recalibrate", "save", "score", "score_all", "speed",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prune_fe' has no attribute {name!r}")
    value = getattr(import_module(f"prune_fe.{_HOME[name]}"), name)
    globals()[name] = value
    return value
