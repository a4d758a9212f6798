"""Prune half of the units of CNNs of every family, verify each result, and write results/zoo.md.

    python scripts/zoo.py                                  all of them, each in a process of its own
    python scripts/zoo.py timm/res2net50_26w_4s            one or more, printed only

The networks come from torchvision and timm, and there is one that is written here. Every family has a few rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OUTCOMES = (
    "The networks get random weights with which every channel matters. Each is scored by filter L1 and pruned at ratio "
    '0.5. "cut" means all of: the pruned network\'s logits are those of the original with the same units masked; '
    "gradients reach every parameter that they reached before; the shape of the output is the same; every group lost "
    "what was asked, or the table says why not; saved and loaded it gives the same bits. Everything else is "
    '"refused" (with the reason, before anything changed) or "FAILED".'
)
"""Explanation of the outcomes, printed above the table."""

TORCHVISION = (
    "alexnet vgg11 vgg16_bn resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 googlenet inception_v3:128 "
    "squeezenet1_1 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 efficientnet_b0 efficientnet_v2_s "
    "regnet_x_400mf regnet_y_400mf convnext_tiny shufflenet_v2_x0_5 shufflenet_v2_x1_0"
).split()
TIMM = (
    "resnet18 resnetv2_50 resnetv2_50x1_bit resnetaa50 resnetrs50 resnet51q seresnet50 ecaresnet26t skresnet18 "
    "legacy_seresnet18 eca_resnext26ts gcresnet33ts gernet_s bat_resnext26ts:256 botnet26t_256:256 res2net50_26w_4s "
    "resnest14d dla34 dla60_res2net dpn68 densenet121 densenetblur121d rdnet_tiny vovnet39a ese_vovnet19b_dw "
    "cspresnet50 cspdarknet53 cs3darknet_s cspnext_tiny darknet53 hrnet_w18_small legacy_xception:96 xception41:96 "
    "inception_v4:128 inception_resnet_v2:128 vgg11 repvgg_a0 mobileone_s0 nfnet_l0 dm_nfnet_f0 regnetx_002 "
    "regnety_002 regnetz_005 "
    "efficientnet_b0 efficientnet_b0_g8_gn tf_efficientnetv2_b0 efficientnet_lite0 mixnet_s mnasnet_100 "
    "mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small lcnet_050 lcnetv2_small tinynet_e fbnetc_100 "
    "hardcorenas_a ghostnet_100 ghostnetv3_100 repghostnet_050 rexnet_100 hgnet_tiny hgnetv2_b0 selecsls42 tresnet_m "
    "convnext_atto convnextv2_atto inception_next_atto convmixer_768_32 fasternet_t0 mambaout_femto starnet_s050 "
    "poolformer_s12 poolformerv2_s12 convformer_s18 repvit_m0_9 shvit_s1 nasnetalarge:128 pnasnet5large:128 test_resnet"
).split()
HERE = ["cifar_resnet20"]
"""The networks that are written in this file."""

SIZE, RATIO = 64, 0.5

TOLERANCE, TOLERANCE_FLOAT64 = 1e-3, 1e-9
"""The largest difference of the logits, as a share of the largest logit."""


class Block(nn.Module):
    """A residual block without weights in its shortcut."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs)
        self.conv2, self.bn2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs)
        self.stride, self.padding = stride, (outs - ins) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's output to its input, which is subsampled and padded with channels of zeros."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + nn.functional.pad(short, (0, 0, 0, 0, self.padding, self.padding)))


class CifarResNet(nn.Module):
    """ResNet-20 of He et al. 2016, section 4.2: shortcuts without weights, padded with zeros (option A)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.conv, self.bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*(Block(a, b, b // a) for a, b in itertools.pairwise(widths)))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (images, classes)."""
        return self.head(self.blocks(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def build_network(name: str) -> nn.Module:
    """Build a network of ten classes, with random weights and one output."""
    from prune_fe import build

    if name in HERE:
        return CifarResNet()
    heads = {"aux_logits": False} if name in ("torchvision/googlenet", "torchvision/inception_v3") else {}
    return build(name, 10, **heads)


def find_parameters_without_gradient(model: nn.Module, images: Tensor) -> set[str]:
    """Return the parameters that no gradient reaches, or only a rounding error, as in front of a softmax.

    The network is run in training mode, which changes the statistics of its norms.
    """
    model.train().zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # Stochastic depth leaves out the same blocks of both networks.
        logits = model(images)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    model.eval()
    sizes = {name: 0.0 if w.grad is None else float(w.grad.abs().max()) for name, w in model.named_parameters()}
    return {name for name, size in sizes.items() if size <= 1e-12 * max(sizes.values())}


def cut(name: str, size: int) -> dict[str, Any]:
    """Prune one network and return its row of the table.

    Args:
        name: A name of the lists above, such as "timm/resnet18".
        size: Height and width of the images.
    """
    import prune_fe
    from prune_fe.errors import InputError
    from prune_fe.pruning.verify import randomise

    torch.manual_seed(0)
    model = build_network(name).eval()
    randomise(model)
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    row: dict[str, Any] = {"name": name}
    try:
        scores = prune_fe.score(model, None, scorer="l1-filter")
        start = time.perf_counter()
        pruned = prune_fe.prune(model, scores, RATIO, images[:1])
        row["seconds"] = time.perf_counter() - start
    except InputError as error:
        return row | {"outcome": "refused", "why": str(error)}
    before, after = prune_fe.cost(model, images), prune_fe.cost(pruned.model, images)
    difference = relative_difference(pruned, model, images)
    faults = [
        *([f"differs from masking by {difference:.1e}"] if not difference <= TOLERANCE else []),
        *find_faults_of_output(name, pruned.model, model, images),
    ]
    # From here on both networks are in float64.
    model.double()
    pruned.model.double()
    images = images.double()
    exact = relative_difference(pruned, model, images)
    lost = find_parameters_without_gradient(pruned.model, images) - find_parameters_without_gradient(model, images)
    unexplained = [step.layers[0] for step in pruned.steps if step.count != step.asked and step.left is None]
    faults += [
        *([f"differs from masking by {exact:.1e} in float64"] if not exact <= TOLERANCE_FLOAT64 else []),
        *([f"no gradient reaches {sorted(lost)[0]}"] if lost else []),
        *([f"{unexplained[0]} lost less than asked, without a reason"] if unexplained else []),
    ]
    reasons = Counter(step.left for step in pruned.steps if step.left)
    return row | {
        "outcome": "FAILED" if faults else "cut",
        "why": "; ".join(faults or [f"{count}× {reason}" for reason, count in reasons.items()]),
        "parameters": [before.parameters, after.parameters],
        "macs": [before.macs, after.macs],
        "units": [sum(step.units for step in pruned.steps), sum(step.count for step in pruned.steps)],
        "groups": [len(pruned.steps), sum(step.count == 0 for step in pruned.steps)],
        "difference": [difference, exact],
    }


def relative_difference(pruned: Any, model: nn.Module, images: Tensor) -> float:
    """Return the largest difference of the pruned to the masked network's logits, as a share of the largest logit."""
    difference, largest = pruned.difference(model, images)
    return float(difference / largest)


def find_faults_of_output(name: str, pruned: nn.Module, model: nn.Module, images: Tensor) -> list[str]:
    """Compare the outputs of a pruned network with their shape before, and with their bits after saving and loading."""
    import prune_fe

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = prune_fe.save(pruned, Path(folder) / "pruned")
        loaded = prune_fe.load(path, build_network(name) if name in HERE else None)
        logits = pruned.eval()(images)
        return [
            *(["another output shape"] if logits.shape != model(images).shape else []),
            *(["loaded, it gives other bits"] if not torch.equal(loaded(images), logits) else []),
        ]


def prune_by_torch_pruning(name: str, size: int) -> dict[str, Any]:
    """Try torch-pruning's own pruner on one network, and check only that the pruned network still runs."""
    import torch_pruning

    torch.manual_seed(0)
    model, images = build_network(name).eval(), torch.randn(1, 3, size, size)
    before = sum(weight.numel() for weight in model.parameters())
    last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    start = time.perf_counter()
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model, (images,), torch_pruning.importance.MagnitudeImportance(), pruning_ratio=RATIO, ignored_layers=[last]
        )
        pruner.step()
        model(images)
    except Exception as error:
        return {"torch_pruning": f"{type(error).__name__}", "their_seconds": time.perf_counter() - start}
    share = sum(weight.numel() for weight in model.parameters()) / before
    return {"torch_pruning": f"{share:.0%} left", "their_seconds": time.perf_counter() - start}


def run_in_a_process(engine: str, name: str, size: int, seconds: float, gib: float) -> dict[str, Any]:
    """Prune one network in a process of its own, so that a network that hangs or crashes loses only its own row.

    Args:
        engine: "cut" or "theirs", as for --child.
        name: The network.
        size: Height and width of the images.
        seconds: The time limit.
        gib: The limit of the address space.

    Returns:
        The columns that the process printed, or its last line of errors.
    """

    def limit_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30),) * 2)

    command = [sys.executable, __file__, "--child", engine, f"{name}:{size}"]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, preexec_fn=limit_memory, check=False
        )
        return dict(json.loads(process.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        error = f"not done after {seconds:g} s"
    except (IndexError, ValueError):
        error = (process.stderr.strip().splitlines() or [f"exit {process.returncode}"])[-1]
    return {"name": name, "outcome": "FAILED", "why": error} if engine == "cut" else {"torch_pruning": error[:40]}


def format_row(row: dict[str, Any]) -> str:
    """Return a row of the table in Markdown."""

    def before_and_after(key: str, unit: float) -> str:
        return f"{row[key][0] / unit:.2f} → {row[key][1] / unit:.2f}" if key in row else ""

    values = [
        row["name"],
        row["outcome"],
        before_and_after("parameters", 1e6),
        before_and_after("macs", 1e6),
        "{1:,} of {0:,}".format(*row["units"]) if "units" in row else "",
        "{:.0e}, {:.0e}".format(*row["difference"]) if "difference" in row else "",
        f"{row['seconds']:.1f}" if "seconds" in row else "",
        row.get("torch_pruning", ""),
        row["why"],
    ]
    return "| " + " | ".join(str(value).replace("|", "/").replace("\n", " ") for value in values) + " |"


def format_report(rows: list[dict[str, Any]]) -> str:
    """Return the text of results/zoo.md."""
    versions = " ".join(f"{m.__name__} {m.__version__}" for m in map(__import__, ("torch", "torchvision", "timm")))
    columns = (
        f"Inputs of {SIZE}×{SIZE} (larger where scripts/zoo.py says so), one thread, {versions}. parameters and "
        "multiply-adds (of one image): before → after. difference: the largest between the pruned and the masked "
        f"network's logits, as a share of the largest, in float32 (at most {TOLERANCE:g}) and in float64 (at most "
        f"{TOLERANCE_FLOAT64:g}). seconds: of prune() alone, which includes its verification of each network. "
        "torch-pruning, with --compare: the share of parameters that the pruner of torch-pruning 1.6.1 leaves with "
        "MagnitudeImportance (that the network still runs is all that is checked), or its error."
    )
    families: dict[str, list[dict[str, Any]]] = {"torchvision": [], "timm": [], "other": []}
    for row in rows:
        families[row["name"].split("/")[0] if "/" in row["name"] else "other"].append(row)
    compared = any("torch_pruning" in row for row in rows)
    lines = ["# The zoo: every network cut in half", "", columns, "", OUTCOMES, ""]
    for family, members in families.items():
        counts = Counter(row["outcome"] for row in members)
        theirs = sum("left" in row.get("torch_pruning", "") for row in members)
        lines += [
            f"## {family}: {counts['cut']} of {len(members)} cut, {counts['refused']} refused, "
            f"{counts['FAILED']} failed",
            "",
            *([f"torch-pruning's own pruner leaves a network that runs for {theirs}.", ""] if compared else []),
            "| network | outcome | parameters, M | multiply-adds, M | units removed | difference | seconds | "
            "torch-pruning | why |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(format_row, members),
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Prune the networks that were named, or all, and print or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=OUTCOMES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="such as timm/resnet18 or torchvision/inception_v3:128")
    parser.add_argument("--child", choices=("cut", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--compare", action="store_true", help="try torch-pruning's own pruner as well")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--seconds", type=float, default=180, help="limit for one network")
    parser.add_argument("--gib", type=float, default=32, help="address space for one network")
    parser.add_argument("--output", type=Path, default=Path("results/zoo.md"))
    arguments = parser.parse_args()
    if arguments.child:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        name, _, size = arguments.names[0].partition(":")
        engine = cut if arguments.child == "cut" else prune_by_torch_pruning
        print(json.dumps(engine(name, int(size))))
        return

    def prune_one(entry: str) -> dict[str, Any]:
        name, _, size = entry.partition(":")
        limits = (name, int(size or SIZE), arguments.seconds, arguments.gib)
        theirs = run_in_a_process("theirs", *limits) if arguments.compare else {}
        return run_in_a_process("cut", *limits) | theirs

    every = [*(f"torchvision/{n}" for n in TORCHVISION), *(f"timm/{n}" for n in TIMM), *HERE]
    rows = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(prune_one, arguments.names or every):
            rows.append(row)
            print(format_row(row), flush=True)
    if not arguments.names:
        arguments.output.write_text(format_report(rows))
    failed = [row["name"] for row in rows if row["outcome"] == "FAILED"]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
