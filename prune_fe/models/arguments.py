"""The arguments of constructors that a file may give: an allow-list, because others open files or run code.

Nothing here loads torch: a recipe is checked with it before any work begins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prune_fe.errors import InputError
from prune_fe.io import nearest

ALLOWED = frozenset(
    """
    aa_layer act_layer attention_dropout attn_drop_rate aux_logits avg_down base_width block_config
    block_reduce_first bn_eps bn_momentum bn_size cardinality channel_multiplier channels depth depth_multiplier
    depths dims down_kernel_size drop_block_rate drop_path_rate drop_rate dropout embed_dim embed_dims fix_stem
    global_pool groups growth_rate head_hidden_size head_init_scale hidden img_size init_values init_weights
    inverted_residual_setting kernel_size kernel_sizes layers memory_efficient mlp_dim mlp_ratio mlp_ratios norm_eps
    norm_layer num_features num_heads num_init_features output_stride pad_type patch_size pool pos_drop_rate
    proj_drop_rate qkv_bias replace_stem_pool replace_stride_with_dilation round_nearest se_ratio stages
    stages_out_channels stages_repeats stem_chs stem_size stem_stride stem_type stem_width stochastic_depth_prob
    strides transform_input width_mult width_per_group widths window_size zero_init_last zero_init_residual
    """.split()
)
"""The arguments of our own, torchvision's and timm's networks that a recipe may give. Layers of activation and
normalisation are given by their names in timm. Not among them: paths, settings of trained weights, classes."""

MAX_NUMBER, MAX_VALUES, MAX_DEPTH = 10**6, 1000, 3
"""Largest absolute number, number of values in all arguments together, and depth of lists in lists."""


def check_arguments(arguments: Mapping[str, Any], allowed: frozenset[str] = ALLOWED) -> None:
    """Check that the arguments of a network's constructor cannot open a file or run code.

    Args:
        arguments: Name -> value.
        allowed: The names that are allowed.

    Raises:
        InputError: A name is not allowed, or a value is no number, word (letters, digits and underscores), None or list
            of them, or beyond reason.
    """
    for name, value in arguments.items():
        if name not in allowed:
            known = sorted(allowed) or ["none"]
            raise InputError(f"{name!r} is not an argument that a file may give; {nearest(str(name), known)}")
        _check_value(name, value, MAX_DEPTH)
    if (count := sum(map(_count_values, arguments.values()))) > MAX_VALUES:
        raise InputError(f"the arguments hold {count} values; allowed are {MAX_VALUES}")


def _check_value(name: str, value: Any, depth: int) -> None:
    """Raise InputError where a value is of a kind that is not allowed; `depth` is that of lists which may follow."""
    if isinstance(value, list | tuple) and depth:
        for entry in value:
            _check_value(name, entry, depth - 1)
    elif isinstance(value, str):
        if not re.fullmatch(r"\w{1,40}", value, re.ASCII):
            raise InputError(f"{name} is {value[:60]!r}; a text has letters, digits and underscores only")
    elif isinstance(value, int | float):
        if not abs(value) <= MAX_NUMBER:
            raise InputError(f"{name} is {str(value)[:20]}; allowed are numbers up to {MAX_NUMBER}")
    elif value is not None:
        raise InputError(f"{name} holds a {type(value).__name__}; allowed are numbers, words and lists of them")


def _count_values(value: Any) -> int:
    return sum(map(_count_values, value)) if isinstance(value, list | tuple) else 1
