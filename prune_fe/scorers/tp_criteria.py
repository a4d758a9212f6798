"""The criteria of torch-pruning (Fang et al. 2023, "DepGraph"), computed by its own code on its own groups.

They stand beside prune_fe's own scorers of the same papers, so that a comparison can have both. torch-pruning scores a
group, which is everything that loses a channel together: the outputs of layers, their norms, and the inputs of the
layers that read them. Every layer of a group gets the scores of the group. The docstrings say how the criteria depart
from their papers, and `prune_fe.scorers.departures` does so in a line each.

The defaults are those of torch-pruning 1.6.1, and so are the names of the settings.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from prune_fe.errors import EnvironmentFault, InputError, describe_error
from prune_fe.scorers.base import LayerScore, Scorer, Sums, check_choice, check_count, to_float64
from prune_fe.scorers.kept_images import keep_images, kept_images, logits_of, network_input, summed_loss
from prune_fe.tracing.copying import copy_sharing_weights
from prune_fe.tracing.layers import Layer, describe_faults
from prune_fe.tracing.nested import Inputs

GroupReduction = Literal["mean", "sum", "max", "prod", "first", "gate"]
Normalizer = Literal["mean", "sum", "max", "standarization", "gaussian"]
"""How a group's scores are normalised, in torch-pruning's spelling; None leaves them as they are."""


def import_torch_pruning() -> Any:
    """Return the package torch_pruning.

    Raises:
        EnvironmentFault: It is not installed.
    """
    try:
        return import_module("torch_pruning")
    except ModuleNotFoundError as error:
        raise EnvironmentFault(
            f"torch-pruning cannot be imported ({error}); pip install 'torch-pruning>=1.6.1,<1.7'"
        ) from error


class GroupScorer(Scorer):
    """Base class of the scorers that torch-pruning computes.

    The network is not changed: its graph is built on a copy that shares its weights, in evaluation mode, whose
    parameters all require gradients. (torch-pruning leaves out layers that are frozen.) Where all parts of a group are
    zero, torch-pruning divides zero by zero and gets NaN; here all units of such a group score 0.
    """

    needs_data: ClassVar[bool] = False
    needs_example: ClassVar[bool] = True
    label: ClassVar[str]
    """The name of the scorer, for messages."""
    why_missing: ClassVar[str] = "it is in none of torch-pruning's groups"
    """What a message says about a layer without scores."""

    @abstractmethod
    def importance(self, tp: Any) -> Any:
        """Return torch-pruning's importance with the settings of this scorer.

        Args:
            tp: The package torch_pruning.
        """

    def prepare(self, importance: Any, model: nn.Module, sums: Mapping[str, Sums]) -> None:
        """Give the copy of the network what torch-pruning's importance reads beside the weights: by default nothing."""

    def why_unfit(self, layer: Layer) -> str | None:
        """Return None: a layer needs no map."""
        return None

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:
        """Raise EnvironmentFault if torch-pruning is not installed."""
        import_torch_pruning()

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Inputs | None = None
    ) -> dict[str, LayerScore]:
        """Return the scores of the groups that the units of every layer belong to.

        Raises:
            InputError: torch-pruning cannot build its graph of the network, a layer is in none of its groups, or it
                gives the group of a layer no score.
        """
        assert example is not None
        tp = import_torch_pruning()
        importance, scores, faults = self.importance(tp), dict[str, Tensor](), dict[str, str]()
        with torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = copy_sharing_weights(model).eval()
            for weight in twin.parameters():
                weight.requires_grad_(weight.is_floating_point())
            graph = self._build_graph(tp, twin, example)
            self.prepare(importance, twin, sums)
            names = {module: name for name, module in twin.named_modules()}
            for group in self._groups(tp, graph, model):
                parts = list(_outputs_in(graph, group, names))
                try:
                    values = importance(group)
                except Exception as error:  # another package's code may raise anything
                    values, fault = None, f"torch-pruning fails: {describe_error(error)}"
                    faults |= {name: fault for name, _, _ in parts}
                if values is not None and values.isnan().all():  # it divided zeros by their mean
                    values = torch.zeros_like(values)
                for name, units, positions in parts if values is not None else ():
                    width = graph.get_out_channels(twin.get_submodule(name))
                    own = scores.setdefault(name, torch.full((width,), torch.nan))
                    own[units] = values.detach().to(own)[positions]
        if missing := {
            layer.name: faults.get(layer.name, self.why_missing) for layer in layers if layer.name not in scores
        }:
            raise InputError(
                f"{self.label}: {describe_faults(missing)}; leave out what it cannot score (option layers)"
            )
        return {layer.name: LayerScore(to_float64(scores[layer.name])) for layer in layers}

    def _groups(self, tp: Any, graph: Any, model: nn.Module) -> Iterator[Any]:
        """Yield the groups of torch-pruning's graph of a network."""
        groups = graph.get_all_groups(root_module_types=_root_types(tp))
        while True:
            try:
                group = next(groups, None)
            except Exception as error:  # it follows channels through a recurrent layer, for example, and loses count
                raise InputError(
                    f"{self.label}: torch-pruning cannot group the layers of {type(model).__name__}: "
                    f"{describe_error(error)}"
                ) from error
            if group is None:
                return
            yield group

    def _build_graph(self, tp: Any, model: nn.Module, example: Inputs) -> Any:
        """Return torch-pruning's graph of a network."""
        # torch-pruning unpacks the inputs: of a bare tensor or list, each image would become an argument.
        inputs = (example,) if isinstance(example, Tensor | list) else example
        try:
            return tp.DependencyGraph().build_dependency(model, inputs, verbose=False)
        except Exception as error:  # another package's code may raise anything
            raise InputError(
                f"{self.label}: torch-pruning cannot follow {type(model).__name__}: {describe_error(error)}"
            ) from error


def _root_types(tp: Any) -> tuple[type[nn.Module], ...]:
    """Return the types of the layers that a group of torch-pruning's pruners begins with."""
    return (tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR)


def _outputs_in(graph: Any, group: Any, names: Mapping[nn.Module, str]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the layers whose outputs are in a group: name, units, and the position of each in the group's scores."""
    for item in group:
        module = item.dep.target.module
        is_output = graph.is_out_channel_pruning_fn(item.dep.handler)
        if is_output and isinstance(module, nn.Module) and module in names:
            pairs = [(unit, root) for unit, root in zip(item.idxs, item.root_idxs, strict=True) if root is not None]
            if pairs:
                units, positions = torch.tensor(pairs).T
                yield names[module], units, positions


@dataclass(frozen=True)
class _ReducedScorer(GroupScorer):
    """Base class of the scorers that combine the scores of the parts of a group.

    Attributes:
        group_reduction: How the scores of the parts of a group become one.
        normalizer: How the scores of a group are normalised, in torch-pruning's spelling; None leaves them as they are.
    """

    group_reduction: GroupReduction = "mean"
    normalizer: Normalizer | None = "mean"

    def __post_init__(self) -> None:
        check_choice(self.label, "group_reduction", self.group_reduction, get_args(GroupReduction))
        check_choice(self.label, "normalizer", self.normalizer, (*get_args(Normalizer), None))


@dataclass(frozen=True)
class TPMagnitude(_ReducedScorer):
    """torch-pruning's group magnitude (`GroupMagnitudeImportance`; Fang et al. 2023).

    The score is the mean of Σ|w|^p over the parts of the group: a unit's own filters, the scales of its norms, and the
    weights by which other layers read it. It is divided by the mean of the group. Li et al. (2016) take Σ|w| of the
    filter alone, which is `p: 1, group_reduction: first, normalizer: null`.

    Attributes:
        p: The exponent. There is no root: p = 2 gives the squared norm.
        bias: Whether biases are parts too.
    """

    label: ClassVar[str] = "tp-magnitude"

    p: float = 2
    bias: bool = False

    def importance(self, tp: Any) -> Any:
        """Return GroupMagnitudeImportance."""
        return tp.importance.GroupMagnitudeImportance(
            p=self.p, group_reduction=self.group_reduction, normalizer=self.normalizer, bias=self.bias
        )


@dataclass(frozen=True)
class TPBNScale(_ReducedScorer):
    """torch-pruning's BN scale (`BNScaleImportance`), after network slimming (Liu et al. 2017).

    The score is the mean of |γ| over all batch norms of the group, divided by the mean of the group. Liu et al. rank
    the |γ| of all layers as they are.
    """

    label: ClassVar[str] = "tp-bn-scale"
    why_missing: ClassVar[str] = "its group has no batch norm"

    def importance(self, tp: Any) -> Any:
        """Return BNScaleImportance."""
        return tp.importance.BNScaleImportance(group_reduction=self.group_reduction, normalizer=self.normalizer)


@dataclass(frozen=True)
class TPLAMP(GroupScorer):
    """torch-pruning's LAMP (`LAMPImportance`), after Lee et al. (2021), "Layer-adaptive Sparsity".

    The score is that of `tp-magnitude`, divided by the sum of the scores of the group that are not smaller. Lee et al.
    define this for single weights, w² over the sum of w² that are not smaller; here it is applied to whole units. It
    changes the order of units between groups, but not within a group.

    Attributes:
        p: The exponent.
        group_reduction: How the scores of the parts of a group become one.
    """

    label: ClassVar[str] = "tp-lamp"

    p: float = 2
    group_reduction: GroupReduction = "mean"

    def __post_init__(self) -> None:
        check_choice(self.label, "group_reduction", self.group_reduction, get_args(GroupReduction))

    def importance(self, tp: Any) -> Any:
        """Return LAMPImportance."""
        return tp.importance.LAMPImportance(p=self.p, group_reduction=self.group_reduction)


@dataclass(frozen=True)
class TPFPGM(_ReducedScorer):
    """torch-pruning's FPGM (`FPGMImportance`), after He et al. (2019).

    The score is the mean over the parts of the group of Σ_j ‖|w_i|^p − |w_j|^p‖₂, for filters and for the weights that
    read them. He et al. take Σ_j ‖w_i − w_j‖₂ of the filters: with absolute values, opposite filters count as the same.
    The scorer `fpgm` is the formula of the paper.

    Attributes:
        p: The exponent.
    """

    label: ClassVar[str] = "tp-fpgm"

    p: float = 2

    def importance(self, tp: Any) -> Any:
        """Return FPGMImportance."""
        return tp.importance.FPGMImportance(p=self.p, group_reduction=self.group_reduction, normalizer=self.normalizer)


@dataclass(frozen=True)
class TPRandom(GroupScorer):
    """torch-pruning's random importance (`RandomImportance`): uniform random numbers.

    Layers that go together have the same numbers, which is not so with the scorer `random`.

    Attributes:
        seed: Seed of torch's generator, whose state is left as it was. The groups draw in torch-pruning's order.
    """

    label: ClassVar[str] = "tp-random"

    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.seed) is not int:
            raise InputError(f"tp-random: seed is {self.seed!r}, allowed are whole numbers")

    def for_seed(self, seed: int) -> Self:
        """Return the scorer with this seed."""
        return replace(self, seed=seed)

    def importance(self, tp: Any) -> Any:
        """Return RandomImportance."""
        return tp.importance.RandomImportance()

    def score(
        self, model: nn.Module, layers: Sequence[Layer], sums: Mapping[str, Sums], example: Inputs | None = None
    ) -> dict[str, LayerScore]:
        """Return uniform random numbers for each group."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return super().score(model, layers, sums, example)


@dataclass(frozen=True)
class _GradientGroupScorer(_ReducedScorer):
    """Base class of the scorers that read the gradients of the network's weights.

    torch-pruning reads the gradients of all parameters at once. Therefore the pass over the data only keeps the images,
    and the gradients are computed when it is finished.

    Attributes:
        bias: Whether biases are parts of the group.
        rows: The largest number of images, which are kept in memory.
    """

    needs_data: ClassVar[bool] = True

    bias: bool = False
    rows: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.label, "rows", self.rows, least=1)

    def check(self, layers: Sequence[Layer], images: int = 0, labels: Collection[int] = ()) -> None:
        """Raise InputError if there are more images than `rows`."""
        super().check(layers, images, labels)
        if images > self.rows:
            raise InputError(
                f"{self.label} keeps the images, at most {self.rows}, and there are {images}; score on fewer "
                "samples or set rows"
            )

    def observed_layers(self, model: nn.Module, layers: Sequence[Layer], example: Inputs) -> Sequence[Layer]:
        """Return the network itself, whose input is read.

        Raises:
            InputError: The network's input is not one tensor.
        """
        return (network_input(example, self.label),)

    def measure(self, maps: Tensor, labels: Tensor, classes: int) -> Sums:
        """Return the images and their labels."""
        return keep_images(maps, labels, self.rows)

    def prepare(self, importance: Any, model: nn.Module, sums: Mapping[str, Sums]) -> None:
        """Compute the gradients of the copy's parameters on the images."""
        ((_, total),) = sums.items()
        self.add_gradients(importance, model, *kept_images(total))

    @abstractmethod
    def add_gradients(self, importance: Any, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Compute the gradients of the parameters, as torch-pruning's examples do.

        Args:
            importance: torch-pruning's importance, which may store the gradients.
            model: The copy of the network, whose parameters get the gradients.
            images: The images, (images, channels, height, width).
            labels: The class of each image, (images,) int64.
        """

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the images' cross-entropies."""
        return summed_loss(logits_of(model, images, labels, self.label).float(), labels, self.label)


@dataclass(frozen=True)
class TPTaylor(_GradientGroupScorer):
    """torch-pruning's Taylor importance (`GroupTaylorImportance`), after Molchanov et al. (2019).

    The score is the mean over the parts of the group of Σ|w · ∂E/∂w|, for filters and the weights that read them, E the
    mean cross-entropy over all images. Its examples add up the gradients of the batches' means, which is the same for
    batches of one size but for a factor that the normalisation removes. Molchanov et al. square the sum of w · ∂E/∂w,
    or the gradient at a gate, and average over batches: here terms of opposite signs do not cancel. Batch norms are
    never counted: the code looks for group norms instead. The scorer `taylor` is the formula of the paper.

    Attributes:
        multivariable: Take |Σ w · ∂E/∂w| of each part.
        batch_size: Images that go through the network together.
    """

    label: ClassVar[str] = "tp-taylor"

    multivariable: bool = False
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.label, "batch_size", self.batch_size, least=1)

    def importance(self, tp: Any) -> Any:
        """Return GroupTaylorImportance."""
        return tp.importance.GroupTaylorImportance(
            group_reduction=self.group_reduction,
            normalizer=self.normalizer,
            multivariable=self.multivariable,
            bias=self.bias,
        )

    def add_gradients(self, importance: Any, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Add up the gradients of all images."""
        for batch, own in zip(images.split(self.batch_size), labels.split(self.batch_size), strict=True):
            (self.loss(model, batch, own) / len(images)).backward()


@dataclass(frozen=True)
class TPHessian(_GradientGroupScorer):
    """torch-pruning's Hessian importance (`GroupHessianImportance`), after optimal brain damage (LeCun et al. 1989).

    The score is the mean over the parts of the group of Σ w² · (∂E/∂w)², for filters, norms and the weights that read
    them: squared gradients of single images stand for the second derivatives. Its code means to average them over the
    images, but each image replaces the one before (it looks for a parameter's name among parameters), so that only the
    last image counts. Which one that is depends on the order of the images, and on the number of processes.
    """

    label: ClassVar[str] = "tp-hessian"

    def importance(self, tp: Any) -> Any:
        """Return GroupHessianImportance."""
        return tp.importance.GroupHessianImportance(
            group_reduction=self.group_reduction, normalizer=self.normalizer, bias=self.bias
        )

    def add_gradients(self, importance: Any, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Hand the gradients of each image to torch-pruning."""
        importance.zero_grad()
        for image, label in zip(images.split(1), labels.split(1), strict=True):
            model.zero_grad()
            self.loss(model, image, label).backward()
            importance.accumulate_grad(model)
