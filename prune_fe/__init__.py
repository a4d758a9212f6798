"""prune_fe: compress neural networks, ablate their units and benchmark pruning criteria.

The names below are the public interface. They are imported when they are first used, so that the command line can
answer before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune_fe.ablation.ablate import ablate, ablate_each, ablate_layers
    from prune_fe.ablation.curves import Ablation, UnitAblation
    from prune_fe.compression import compress
    from prune_fe.data.digits import digits
    from prune_fe.data.image_folder import folder
    from prune_fe.measure.cost import cost, speed
    from prune_fe.measure.evaluate import evaluate
    from prune_fe.measure.latency import compare_latency
    from prune_fe.models.build import build
    from prune_fe.models.export import export
    from prune_fe.models.saved import load, save
    from prune_fe.pruning.inspection import inspect
    from prune_fe.pruning.loss_curves import Sensitivity, load_sensitivity
    from prune_fe.pruning.prune import prune
    from prune_fe.pruning.sensitivity import sensitivity
    from prune_fe.report.loading import load_results
    from prune_fe.scorers import SCORERS
    from prune_fe.scoring.score import score, score_all
    from prune_fe.scoring.scores import Scores, load_scores
    from prune_fe.tracing.feature_maps import mask, observe
    from prune_fe.tracing.layers import find_layers
    from prune_fe.training.loop import finetune
    from prune_fe.training.optimizer_state import carry_over
    from prune_fe.training.recalibration import recalibrate

_HOME = {
    "Ablation": "ablation.curves",
    "SCORERS": "scorers",
    "Scores": "scoring.scores",
    "Sensitivity": "pruning.loss_curves",
    "UnitAblation": "ablation.curves",
    "ablate": "ablation.ablate",
    "ablate_each": "ablation.ablate",
    "ablate_layers": "ablation.ablate",
    "build": "models.build",
    "carry_over": "training.optimizer_state",
    "compare_latency": "measure.latency",
    "compress": "compression",
    "cost": "measure.cost",
    "digits": "data.digits",
    "evaluate": "measure.evaluate",
    "export": "models.export",
    "find_layers": "tracing.layers",
    "finetune": "training.loop",
    "folder": "data.image_folder",
    "inspect": "pruning.inspection",
    "load": "models.saved",
    "load_results": "report.loading",
    "load_scores": "scoring.scores",
    "load_sensitivity": "pruning.loss_curves",
    "mask": "tracing.feature_maps",
    "observe": "tracing.feature_maps",
    "prune": "pruning.prune",
    "recalibrate": "training.recalibration",
    "save": "models.saved",
    "score": "scoring.score",
    "score_all": "scoring.score",
    "sensitivity": "pruning.sensitivity",
    "speed": "measure.cost",
}

__all__ = [
    "SCORERS",
    "Ablation",
    "Scores",
    "Sensitivity",
    "UnitAblation",
    "ablate",
    "ablate_each",
    "ablate_layers",
    "build",
    "carry_over",
    "compare_latency",
    "compress",
    "cost",
    "digits",
    "evaluate",
    "export",
    "find_layers",
    "finetune",
    "folder",
    "inspect",
    "load",
    "load_results",
    "load_scores",
    "load_sensitivity",
    "mask",
    "observe",
    "prune",
    "recalibrate",
    "save",
    "score",
    "score_all",
    "sensitivity",
    "speed",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prune_fe' has no attribute {name!r}")
    value = getattr(import_module(f"prune_fe.{_HOME[name]}"), name)
    globals()[name] = value
    return value
