"""Prune half of the units of networks of every family with both engines, verify the results, and write results/zoo.md.

    python scripts/zoo.py --compare                        all of them, with torch-pruning's own pruner beside them
    python scripts/zoo.py --compare --tested               those that torch-pruning's tests prune, printed only
    python scripts/zoo.py timm/res2net50_26w_4s            one or more, printed only, and measured anew

The networks come from torchvision and timm, a few are written in zoos/networks.py, and zoos/tested.py has those that
torch-pruning's tests prune. Every family has a few rows. Each network is cut by each engine in a process of its own,
with limits of time and memory, and what it gave is kept in a file of its own: after an interruption, the same command
goes on with what is missing.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoos.networks import SIZE, build_network, draw_inputs, find_box_layers, is_classifier, is_detector, list_networks
from zoos.report import COLUMNS, OUTCOMES, RIVAL, find_rows_behind, format_report, format_row
from zoos.tested import is_tested

RATIO = 0.5

PARTS = {"theirs": "their", "cut": "", "engine": "engine"}
"""Part of a row that has a process and a file of its own -> how the names of its columns begin: torch-pruning's own
pruner, the engine "trace", and the engine "torch-pruning"."""

TOLERANCE, TOLERANCE_FLOAT64 = 1e-3, 1e-9
"""The largest difference of the outputs, as a share of the largest output."""


def make_network(name: str, size: int) -> nn.Module:
    """Build a network with random weights with which every channel matters, in evaluation mode."""
    from prune_fe.pruning.verify import randomise

    torch.manual_seed(0)
    model = build_network(name, size).eval()
    randomise(model)
    if is_detector(name):  # Boxes far from their anchors would all be left out.
        for layer in find_box_layers(model):
            layer.weight.data *= 1e-4
    return model


def find_gradients(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Return the gradient of each parameter, zeros for one that no gradient reaches.

    The network is run in training mode, which changes the statistics of its norms. A detector returns its losses, for a
    box in the middle of each image.

    Args:
        model: The network.
        inputs: Its inputs.
    """
    from prune_fe.tracing.nested import run, tensors_in

    model.train().zero_grad()
    if isinstance(inputs, list):
        box = inputs[0].new_tensor([[1, 1, 3, 3]]) * (inputs[0].shape[-1] / 4)
        inputs = inputs, [{"boxes": box, "labels": torch.ones(1, dtype=torch.long)} for _ in inputs]
    with torch.random.fork_rng():
        torch.manual_seed(0)  # Stochastic depth leaves out the same blocks of both networks.
        outputs = tensors_in(run(model, inputs))
    generator = torch.Generator().manual_seed(3)
    torch.stack(
        [(output * torch.randn(output.shape, generator=generator)).sum() for output in outputs]
    ).sum().backward()
    model.eval()
    return {name: torch.zeros_like(w) if w.grad is None else w.grad for name, w in model.named_parameters()}


def find_unreached(gradients: Mapping[str, Tensor]) -> set[str]:
    """Return the parameters that no gradient reaches, or only a rounding error.

    A bias in front of a batch norm has none in exact arithmetic, and neither has one in front of a softmax.
    """
    sizes = {name: float(gradient.abs().max()) for name, gradient in gradients.items()}
    return {name for name, size in sizes.items() if size <= 1e-12 * max(sizes.values())}


def cut(name: str, size: int) -> dict[str, Any]:
    """Prune one network with the engine "trace" and return its row of the table, with a digest of the tensors.

    Args:
        name: A name of the lists in zoos/networks.py, such as "timm/resnet18".
        size: Height and width of the images.
    """
    from prune_fe.errors import InputError

    model, example = make_network(name, size), draw_inputs(name, size, 1)
    try:
        pruned, seconds = prune_with(model, example, "trace")
        digest = find_digest(pruned.model)
        return {"name": name, **check(name, size, model, pruned), "seconds": seconds, "digest": digest}
    except InputError as error:
        return {"name": name, "outcome": "refused", "why": str(error)}


def cut_with_engine(name: str, size: int, digest: str) -> dict[str, Any]:
    """Prune one network with the engine "torch-pruning" and return its columns of the table.

    Args:
        name: The network.
        size: Height and width of the images.
        digest: What `find_digest` returned for the network that "trace" gave; "" if it gave none.
    """
    from prune_fe.errors import InputError

    model, example = make_network(name, size), draw_inputs(name, size, 1)
    try:
        pruned, seconds = prune_with(model, example, "torch-pruning")
        is_same = find_digest(pruned.model) == digest
        columns = {"outcome": "same bits"} if is_same else check(name, size, model, pruned)
        columns |= {"left": pruned.parameters, "seconds": seconds}
    except InputError as error:
        columns = {"outcome": "refused", "why": str(error)}
    return {f"engine_{key}": value for key, value in columns.items()}


def prune_with(model: nn.Module, example: Any, engine: str) -> tuple[Any, float]:
    """Score and prune a network, and return the result and the seconds of the processor that prune() took."""
    import prune_fe

    small = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    # What libraries load and compile at the first call is not counted.
    prune_fe.prune(
        small, prune_fe.score(small, None, scorer="l1-filter"), RATIO, torch.randn(1, 3, 8, 8), engine=engine
    )
    scores = prune_fe.score(model, None, scorer="l1-filter", linear=True, example=example)
    start = time.process_time()
    return prune_fe.prune(model, scores, RATIO, example, engine=engine), time.process_time() - start


def find_digest(model: nn.Module) -> str:
    """Return a digest of the names, shapes and bits of all tensors of a network."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check(name: str, size: int, model: nn.Module, pruned: Any) -> dict[str, Any]:
    """Return what a row says of a pruned network.

    Args:
        name: The network.
        size: Height and width of the images.
        model: The network before it was pruned.
        pruned: The result of prune().
    """
    import prune_fe
    from prune_fe.pruning.masking import masked
    from prune_fe.tracing.copying import convert
    from prune_fe.tracing.nested import move

    example, inputs = draw_inputs(name, size, 1), draw_inputs(name, size, 2 if is_detector(name) else 4)
    before, after = prune_fe.cost(model, example), prune_fe.cost(pruned.model, example)
    difference = relative_difference(pruned, model, inputs)
    # A rounding error changes a detector's choice of boxes, and grows in a deep network.
    is_single_right = is_detector(name) or difference <= TOLERANCE or difference <= 10 * rounding(model, inputs)
    faults = [
        *([] if is_single_right else [f"differs from masking by {difference:.1e}"]),
        *find_faults_of_output(name, size, pruned.model, model, inputs),
    ]
    # From here on everything is in float64; the network itself is needed as it is.
    model = copy.deepcopy(model)
    convert(model, torch.float64)
    convert(pruned.model, torch.float64)
    inputs = move(inputs, dtype=torch.float64)
    exact = relative_difference(pruned, model, inputs)
    # The units that are left of a small gate may all be dead on these images, in the masked network too.
    with masked(model, pruned.model, pruned.cutter.axes, pruned.kept), torch.enable_grad():
        whole = pruned.surviving(find_gradients(model, inputs))
    lost = find_unreached(find_gradients(pruned.model, inputs)) - find_unreached(whole)
    unexplained = [step.layers[0] for step in pruned.steps if step.count != step.asked and step.left is None]
    faults += [
        *([f"differs from masking by {exact:.1e} in float64"] if not exact <= TOLERANCE_FLOAT64 else []),
        *([f"no gradient reaches {sorted(lost)[0]}"] if lost else []),
        *([f"{unexplained[0]} lost less than asked, without a reason"] if unexplained else []),
    ]
    reasons = Counter(step.left for step in pruned.steps if step.left)
    return {
        "outcome": "FAILED" if faults else "cut",
        "why": "; ".join(faults or [f"{count}× {reason}" for reason, count in reasons.items()]),
        "parameters": [before.parameters, after.parameters],
        "macs": [before.macs, after.macs],
        "units": [sum(step.units for step in pruned.steps), sum(step.count for step in pruned.steps)],
        "groups": [len(pruned.steps), sum(step.count == 0 for step in pruned.steps)],
        "difference": [difference, exact],
    }


def rounding(model: nn.Module, inputs: Any) -> float:
    """Return how far the outputs of a network in float32 are from those in float64, as a share of the largest."""
    from prune_fe.tracing.copying import convert
    from prune_fe.tracing.nested import move, run, tensors_in

    exact = copy.deepcopy(model)
    convert(exact, torch.float64)
    with torch.no_grad():
        pairs = zip(
            tensors_in(run(model, inputs)), tensors_in(run(exact, move(inputs, dtype=torch.float64))), strict=True
        )
        return max(float((single - double).abs().max() / double.abs().max()) for single, double in pairs)


def relative_difference(pruned: Any, model: nn.Module, inputs: Any) -> float:
    """Return the largest difference of the pruned to the masked network's outputs, as a share of the largest."""
    difference, largest = pruned.difference(model, inputs)
    return float(difference / largest)


def find_faults_of_output(name: str, size: int, pruned: nn.Module, model: nn.Module, inputs: Any) -> list[str]:
    """Compare the outputs of a pruned network with their shape before, and with their bits after saving and loading."""
    import prune_fe
    from prune_fe.tracing.nested import run, tensors_in

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = prune_fe.save(pruned, Path(folder) / "pruned")
        loaded = prune_fe.load(path, None if is_classifier(name) else build_network(name, size))
        outputs, before, after = (tensors_in(run(net.eval(), inputs)) for net in (pruned, model, loaded))
    # A detector finds another number of boxes.
    shapes = [[output.shape[is_detector(name) :] for output in tensors] for tensors in (before, outputs)]
    is_same = len(outputs) == len(after) and all(map(torch.equal, outputs, after))
    return [
        *(["another output shape"] if shapes[0] != shapes[1] else []),
        *([] if is_same else ["loaded, it gives other bits"]),
    ]


def try_torch_pruning(name: str, size: int) -> dict[str, Any]:
    """Prune one network by torch-pruning and return its columns of the table."""
    from zoos.rival import prune_by_torch_pruning

    inputs = draw_inputs(name, size, 1)
    return prune_by_torch_pruning(make_network(name, size), inputs, RATIO, TOLERANCE_FLOAT64)


def run_in_a_process(part: str, entry: str, seconds: float, gib: float, digest: str = "") -> dict[str, Any]:
    """Prune one network in a process of its own, so that a network that hangs or crashes loses only its own row.

    Args:
        part: A key of PARTS.
        entry: The network, with the size of the images.
        seconds: The time limit.
        gib: The limit of the address space.
        digest: What the engine "torch-pruning" is compared with.

    Returns:
        The columns that the process printed, or its last line of errors in place of the outcome.
    """

    def set_limits() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30),) * 2)
        signal.alarm(math.ceil(seconds) + 5)  # it also ends if this program has ended before

    command = [sys.executable, __file__, "--child", part, entry, digest]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, preexec_fn=set_limits, check=False
        )
        printed: list[dict[str, Any]] = [
            json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")
        ]
        if printed:
            return printed[-1]
        error = (process.stderr.strip().splitlines() or [f"exit {process.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        error = f"not done in {seconds:g} s"
    if part == "cut":
        return {"name": entry.partition(":")[0], "outcome": "FAILED", "why": error}
    return {f"{PARTS[part]}_outcome": error}


def measure(entry: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the row of a network, and keep its parts in files; parts that are there are not measured again.

    Args:
        entry: The name, with the size of the images where it is not SIZE.
        arguments: The command line.

    Returns:
        The row; without an outcome if there is none, and `--kept` forbids to measure it.
    """
    from prune_fe.io import write_json

    name, _, size = entry.partition(":")
    row: dict[str, Any] = {}
    for part in PARTS if arguments.compare else ("cut", "engine"):
        if part == "engine" and "engine_outcome" in row:
            continue  # one process measured both engines when this row was kept
        file = arguments.rows / f"{name.replace('/', '-')}-{part}.json"
        kept = json.loads(file.read_text()) if file.is_file() else {}
        if kept.get("versions") != find_versions() and not arguments.kept:
            limits = arguments.seconds, arguments.gib
            columns = run_in_a_process(part, f"{name}:{size or SIZE}", *limits, digest=row.get("digest", ""))
            kept = {"versions": find_versions(), "row": columns}
            write_json(file, kept)
        row |= kept.get("row", {})
    return row


def find_versions() -> str:
    """Return the versions of the packages that the networks and the results come from."""
    return " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "timm", "torch-pruning"))


def main() -> None:
    """Prune the networks that were named, or all, and print or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=OUTCOMES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="such as timm/resnet18 or torchvision/inception_v3:128")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--tested", action="store_true", help="only the networks that torch-pruning's tests prune")
    parser.add_argument("--compare", action="store_true", help="try torch-pruning's own pruner as well")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--seconds", type=float, default=180, help="limit for one network and engine")
    parser.add_argument("--gib", type=float, default=12, help="address space for one network and engine")
    parser.add_argument("--rows", type=Path, default=Path("runs/zoo"), help="folder that keeps the rows")
    parser.add_argument("--kept", action="store_true", help="measure nothing: the table of the rows that are kept")
    parser.add_argument("--output", type=Path, default=Path("results/zoo.md"))
    arguments = parser.parse_args()
    if arguments.child:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        name, _, size = arguments.names[0].partition(":")
        engine = partial(cut_with_engine, digest=arguments.names[1])
        tried: dict[str, Callable[[str, int], dict[str, Any]]]
        tried = {"theirs": try_torch_pruning, "cut": cut, "engine": engine}
        print(json.dumps(tried[arguments.child](name, int(size))), flush=True)
        return
    names = [name for name in list_networks() if not arguments.tested or is_tested(name.partition(":")[0])]
    rows = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        if arguments.names:
            arguments.rows = Path(folder)  # what is named is measured anew
        for row in pool.map(partial(measure, arguments=arguments), arguments.names or names):
            if "outcome" not in row:
                continue
            rows.append(row)
            print(format_row(row), flush=True)
    columns = COLUMNS.format(size=SIZE, versions=find_versions(), single=TOLERANCE, double=TOLERANCE_FLOAT64)
    rival = ""
    if arguments.compare:
        rival = RIVAL.format(version=metadata.version("torch-pruning"), double=TOLERANCE_FLOAT64)
    report = format_report(rows, columns, rival)
    if arguments.names or arguments.tested:
        print("\n".join(find_rows_behind(rows)))
    else:
        arguments.output.write_text(report)
    failed = [row["name"] for row in rows if row["outcome"] == "FAILED"]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
