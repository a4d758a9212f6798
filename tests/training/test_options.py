"""What the options of training allow, from their class and from the keywords of finetune."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest

from prune_fe.errors import InputError
from prune_fe.options import validate_options
from prune_fe.training.loop import finetune
from prune_fe.training.options import PaperTrainOptions, TrainOptions, _parse_arguments
from prune_fe.training.unfinished import FIRST_OPTIONS
from tests.training.helpers import pictures, same, small, state

REFUSED = [
    ({"lr": 0.0}, r"lr: input should be greater than 0 \(got 0.0\)"),
    ({"lr": math.nan}, "lr: input should be a finite number"),
    ({"lr": math.inf}, "lr: input should be a finite number"),
    ({"lr": "fast"}, r"lr: input should be a valid number \(got 'fast'\)"),
    ({"final_lr": 0.0}, "final_lr: input should be greater than 0"),
    ({"epochs": 0}, r"epochs: input should be greater than or equal to 1 \(got 0\)"),
    ({"epochs": -1}, "epochs: input should be greater than or equal to 1"),
    ({"epochs": 2.5}, "epochs: input should be a valid integer"),
    ({"momentum": 1.0}, "momentum: input should be less than 1"),
    ({"weight_decay": -0.1}, "weight_decay: input should be greater than or equal to 0"),
    ({"batch_size": 0}, "batch_size: input should be greater than or equal to 1"),
    ({"augment": 1}, "augment: input should be a valid boolean"),
    ({"schedule": "linear"}, r"schedule: input should be 'step', 'cosine' or 'constant' \(got 'linear'\)"),
    ({"warmup": 1.0}, "warmup: input should be less than 1"),
    ({"ema": 1.0}, "ema: input should be less than 1"),
    ({"accumulate": 0}, "accumulate: input should be greater than or equal to 1"),
    ({"accumulate": 8, "batch_size": 4}, "accumulate=8 is above batch_size=4"),
    ({"amp_dtype": "float8"}, "amp_dtype: input should be 'bfloat16' or 'float16'"),
    ({"compile": True, "sync_batchnorm": True}, "compile and sync_batchnorm"),
    ({"epoch": 3}, "epoch: unknown key; did you mean 'epochs'"),
]


@pytest.mark.parametrize(("settings", "text"), REFUSED)
def test_an_option_out_of_range_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        validate_options(TrainOptions, None, **settings)


def test_finetune_refuses_an_option_out_of_range_before_it_trains() -> None:
    model = small()
    before = state(model)
    with pytest.raises(InputError, match="lr: input should be greater than 0"):
        finetune(model, pictures(), pictures(6), lr=0.0)
    assert same(before, state(model))


def test_the_schedules_of_a_recipe_but_the_papers_need_epochs() -> None:
    for schedule in ("cosine", "constant"):
        with pytest.raises(InputError, match=f"the {schedule} schedule needs epochs"):
            validate_options(PaperTrainOptions, None, schedule=schedule)


def test_the_defaults_of_a_recipe_are_the_papers_and_nothing_else() -> None:
    options = dataclasses.asdict(PaperTrainOptions())
    assert {name: options[name] for name in FIRST_OPTIONS} == {
        "lr": 1e-3,
        "lr_by_layer": {},
        "schedule": "step",
        "epochs": None,
        "final_lr": 1e-5,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch_size": 512,
        "augment": False,
        "amp": False,
        "only": (),
        "cache_gib": 4.0,
        "distill": None,
    }
    off = {name: value for name, value in options.items() if name not in FIRST_OPTIONS and value}
    assert off == {"opt": "sgd", "accumulate": 1, "keep": "best", "amp_dtype": "bfloat16"}


def test_arguments_of_an_optimizer_are_read_from_words() -> None:
    tokens = [SimpleNamespace(value=value) for value in ("betas=0.9,0.95", "nesterov=true", "eps=1e-8")]
    assert _parse_arguments(None, tokens) == {"betas": [0.9, 0.95], "nesterov": True, "eps": 1e-8}  # type: ignore[arg-type]
    for word in ("betas", "=3", "eps=small"):
        with pytest.raises(ValueError, match="write NAME=VALUE"):
            _parse_arguments(None, [SimpleNamespace(value=word)])  # type: ignore[list-item]


def test_options_and_keywords_train_alike_and_keywords_have_precedence() -> None:
    states = []
    cases: list[tuple[Any, dict[str, Any]]] = [
        (TrainOptions(lr=0.1, epochs=1, batch_size=12), {}),
        (None, {"lr": 0.1, "epochs": 1, "batch_size": 12}),
        ({"lr": 0.5, "epochs": 1, "batch_size": 12}, {"lr": 0.1}),
    ]
    for given, keywords in cases:
        model = small()
        finetune(model, pictures(60), pictures(30), given, **keywords)
        states.append(state(model))
    assert not same(states[0], state(small()))
    assert same(states[0], states[1])
    assert same(states[0], states[2])
