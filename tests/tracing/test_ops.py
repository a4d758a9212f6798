"""Every interceptor has the operators that it is meant to have; the table is the only place to add one."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import prune_fe
from prune_fe.models import factories
from prune_fe.scorers import nisp
from prune_fe.tracing import function_rules, survey
from prune_fe.tracing.ops import OPERATORS, Kind, Trait, functions, functions_named, names, plain_name

FUNCTIONS = {
    "survey.NORMS": "F.batch_norm F.group_norm F.layer_norm F.instance_norm torch.batch_norm torch.group_norm",
    "survey.ACTIVATIONS": """
        F.relu F.relu_ F.relu6 F.leaky_relu F.leaky_relu_ F.elu F.elu_ F.celu F.selu F.rrelu F.gelu F.silu
        F.mish F.hardswish F.hardtanh F.hardtanh_ F.hardsigmoid F.prelu F.softplus F.sigmoid F.tanh
        torch.relu torch.relu_ torch.sigmoid torch.sigmoid_ torch.tanh torch.tanh_ torch.prelu
        Tensor.relu Tensor.relu_ Tensor.sigmoid Tensor.sigmoid_ Tensor.tanh Tensor.tanh_
        torch.clamp torch.clamp_ torch.clamp_min torch.clamp_min_ Tensor.clamp Tensor.clamp_ Tensor.clamp_min
        Tensor.clamp_min_ torch.clip torch.clip_ Tensor.clip Tensor.clip_
        F.threshold F.softsign F.logsigmoid F.hardshrink F.softshrink F.tanhshrink
        """,
    "survey.IDENTITIES": """
        F.dropout F.dropout2d F.alpha_dropout F.feature_alpha_dropout
        Tensor.contiguous Tensor.to Tensor.float Tensor.half Tensor.bfloat16 Tensor.type
        """,
    "survey.GLOBAL_POOLINGS": """
        F.adaptive_avg_pool2d F.adaptive_max_pool2d torch.mean torch.amax Tensor.mean Tensor.amax
        """,
    "nisp.LINEAR": """
        F.avg_pool1d F.avg_pool2d F.avg_pool3d
        F.adaptive_avg_pool1d F.adaptive_avg_pool2d F.adaptive_avg_pool3d
        F.interpolate F.pad torch.mean torch.sum Tensor.mean Tensor.sum
        torch.add Tensor.add Tensor.add_ Tensor.__iadd__ Tensor.__add__ Tensor.__radd__
        torch.cat torch.concat torch.stack torch.split torch.chunk Tensor.split Tensor.chunk Tensor.__getitem__
        torch.flatten torch.reshape torch.permute torch.transpose torch.squeeze torch.unsqueeze F.pixel_shuffle
        Tensor.flatten Tensor.reshape Tensor.view Tensor.permute Tensor.transpose Tensor.squeeze Tensor.unsqueeze
        Tensor.expand Tensor.clone Tensor.narrow torch.narrow torch.channel_shuffle torch.roll torch.flip
        """,
    "nisp.LINEARISED": """
        torch.conv1d torch.conv2d torch.conv3d torch.conv_transpose1d torch.conv_transpose2d torch.conv_transpose3d
        F.linear F.batch_norm F.max_pool1d torch.max_pool1d F.max_pool2d torch.max_pool2d F.max_pool3d torch.max_pool3d
        F.adaptive_max_pool1d F.adaptive_max_pool2d F.adaptive_max_pool3d torch.amax Tensor.amax
        torch.mul Tensor.mul Tensor.__mul__ Tensor.__rmul__ Tensor.mul_ Tensor.__imul__
        torch.div torch.true_divide Tensor.div Tensor.true_divide Tensor.__truediv__
        torch.sub Tensor.sub Tensor.__sub__ Tensor.contiguous
        """,
    "factories.ALLOCATIONS": "torch.empty",
}
"""The sets of functions, by the names that they have in torch."""

NAMES = {
    "REARRANGING": """
        view reshape flatten unflatten ravel permute transpose swapaxes swapdims movedim moveaxis t chunk split
        split_with_sizes tensor_split unbind cat concat concatenate stack narrow getitem select index_select expand
        expand_as repeat repeat_interleave tile squeeze unsqueeze roll flip reshape_as view_as hsplit vsplit dsplit
        unfold T mT H mH pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle
        """,
    "FLOATS_ONLY": "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
    "SPLITTING": "chunk split split_with_sizes tensor_split",
    "PADDING": "pad",
    "REDUCING": """
        mean sum amax amin max min std var norm vector_norm linalg_vector_norm prod logsumexp std_mean var_mean
        nanmean any all argmax argmin median
        """,
    "SELECTING": "amax amin max min median argmax argmin",
    "MATRIX_PRODUCTS": "matmul rmatmul mm bmm",
    "CONVOLUTIONS": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    "EINSUM": "einsum",
    "GATED_HALVES": "glu",
    "REGION_POOLING": "roi_align roi_pool",
    "NEW_TENSOR": "new_zeros new_ones new_empty new_full new_tensor",
    "OPAQUE": """
        linear addmm baddbmm scaled_dot_product_attention multi_head_attention_forward bilinear tensordot outer
        fold gather scatter index_add grid_sample topk sort cumsum nonzero argwhere
        layer_norm group_norm batch_norm instance_norm rms_norm
        """,
}
"""The sets of the dependency graph, which compares plain names."""

MODULES = {"survey": survey, "nisp": nisp, "factories": factories}


def torch_function(path: str) -> Any:
    home, name = path.split(".")
    return getattr({"F": F, "torch": torch, "Tensor": Tensor}[home], name)


@pytest.mark.parametrize("where", FUNCTIONS)
def test_the_functions_of_each_interceptor(where: str) -> None:
    module, attribute = where.split(".")
    assert set(getattr(MODULES[module], attribute)) == set(map(torch_function, FUNCTIONS[where].split()))


@pytest.mark.parametrize("attribute", NAMES)
def test_the_names_of_the_dependency_graph(attribute: str) -> None:
    assert getattr(function_rules, attribute) == set(NAMES[attribute].split())


def test_elementwise_operators_need_no_line_for_the_dependency_graph() -> None:
    listed = {name for words in NAMES.values() for name in words.split()}
    assert listed.isdisjoint(names(Kind.ELEMENTWISE, Kind.ACTIVATION, Kind.IDENTITY, Kind.POOLING, Kind.RESAMPLING))


def test_an_operator_has_one_line_and_a_function_one_operator() -> None:
    assert len({operator.name for operator in OPERATORS}) == len(OPERATORS)
    # Torch has some functions under two names, such as F.relu_ and torch.relu_.
    owners = [function for operator in OPERATORS for function in set(operator.functions)]
    assert len(set(owners)) == len(owners)
    assert functions() == set(owners)


def test_operators_are_chosen_by_kind_and_trait() -> None:
    assert names(Kind.MATRIX_PRODUCT, Kind.ALLOCATION) == {"matmul", "rmatmul", "mm", "bmm", "empty"}
    assert names(Kind.REDUCING, traits=Trait.SELECTS | Trait.POOLS_GLOBALLY) == {"amax"}
    assert functions(Kind.REDUCING, traits=Trait.SELECTS) == {torch.amax, Tensor.amax}
    assert functions_named("conv2d") == (torch.conv2d,)
    with pytest.raises(KeyError):
        functions_named("nothing")


@pytest.mark.parametrize(
    "function", [torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__], ids=lambda f: f.__name__
)
def test_what_an_operator_is_called_has_no_underscores(function: Any) -> None:
    assert plain_name(function) in ("add", "iadd")


def test_the_getter_of_an_attribute_is_called_like_it() -> None:
    assert plain_name(Tensor.T.__get__) == "T"  # type: ignore[attr-defined]
    assert plain_name(object()) == ""


def test_no_other_file_lists_functions_of_torch() -> None:
    """Sets of torch functions come from the table; NISP has rules for single ones."""
    for path in Path(prune_fe.__file__).parent.rglob("*.py"):
        if path.name == "ops.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Set):
                homes = {ast.unparse(entry.value) for entry in node.elts if isinstance(entry, ast.Attribute)}
                assert homes.isdisjoint({"F", "torch", "Tensor"}), f"{path}: {ast.unparse(node)}"
