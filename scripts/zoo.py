"""Cut every family of classification CNN in half, prove each cut, and write results/zoo.md.

    python scripts/zoo.py                                  all of them, each in a process of its own
    python scripts/zoo.py timm/res2net50_26w_4s            one or more, printed only

The networks get random weights with which every channel matters. Each is scored by filter L1 and pruned at ratio 0.5.
"cut" means all of: the pruned network's logits are those of the original with the same units masked; gradients reach
every parameter that they reached before; the shape of the output is the same; every group lost what was asked, or the
table says why not; saved and loaded it gives the same bits. Everything else is "refused" (with the reason, before
anything changed) or "FAILED".
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
OWN = ["cifar_resnet20"]
SIZE, RATIO, TOLERANCE, EXACT = 64, 0.5, 1e-3, 1e-9


class Block(nn.Module):
    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs)
        self.conv2, self.bn2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False), nn.BatchNorm2d(outs)
        self.stride, self.beside = stride, (outs - ins) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(y + nn.functional.pad(short, (0, 0, 0, 0, self.beside, self.beside)))


class CifarResNet(nn.Module):
    """ResNet-20 of He et al. 2016, section 4.2: shortcuts without weights, padded with zeros (option A)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.conv, self.bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*(Block(a, b, b // a) for a, b in itertools.pairwise(widths)))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def built(name: str) -> nn.Module:
    from prune_fe import build

    if name in OWN:
        return CifarResNet()
    heads = {"aux_logits": False} if name in ("torchvision/googlenet", "torchvision/inception_v3") else {}
    return build(name, 10, **heads)


def without_gradient(model: nn.Module, images: Tensor) -> set[str]:
    """The parameters that no gradient reaches, or nothing but rounding (behind a softmax that takes it out again)."""
    model.train().zero_grad()
    logits = model(images)
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    model.eval()
    sizes = {name: 0.0 if w.grad is None else float(w.grad.abs().max()) for name, w in model.named_parameters()}
    return {name for name, size in sizes.items() if size <= 1e-12 * max(sizes.values())}


def cut(name: str, size: int) -> dict[str, Any]:
    """Everything the table says of one network."""
    import prune_fe
    from prune_fe.errors import InputError
    from prune_fe.pruning.verify import randomise

    torch.manual_seed(0)
    model = built(name).eval()
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
    difference, largest = pruned.difference(model, images)
    with tempfile.TemporaryDirectory() as folder:
        path = prune_fe.save(pruned.model, Path(folder) / "pruned")
        loaded = prune_fe.load(path, built(name) if name in OWN else None)
        with torch.no_grad():
            same = torch.equal(loaded(images), pruned.model.eval()(images))
            shapes = pruned.model(images).shape == model(images).shape
    exact = exact_difference(pruned, model, images)
    images = images.double()
    lost = without_gradient(pruned.model, images) - without_gradient(model, images)  # changes what norms have seen
    silent = [step.layers[0] for step in pruned.steps if step.count != step.asked and step.left is None]
    faults = [
        *([f"differs from masking by {difference / largest:.1e}"] if not difference <= TOLERANCE * largest else []),
        *([f"differs from masking by {exact:.1e} in float64"] if not exact <= EXACT else []),
        *([f"no gradient reaches {sorted(lost)[0]}"] if lost else []),
        *([] if shapes else ["another output shape"]),
        *([] if same else ["loaded, it gives other bits"]),
        *([f"{silent[0]} lost less than asked, without a reason"] if silent else []),
    ]
    left = Counter(step.left for step in pruned.steps if step.left)
    return row | {
        "outcome": "FAILED" if faults else "cut",
        "why": "; ".join(faults or [f"{count}× {reason}" for reason, count in left.items()]),
        "parameters": [before.parameters, after.parameters],
        "macs": [before.macs, after.macs],
        "units": [sum(s.units for s in pruned.steps), sum(s.count for s in pruned.steps)],
        "groups": [len(pruned.steps), sum(s.count == 0 for s in pruned.steps)],
        "difference": [difference / largest, exact],
    }  # fmt: skip


def exact_difference(pruned: Any, model: nn.Module, images: Tensor) -> float:
    """Of the logits in float64, as a share of the largest; the networks stay in float64."""
    model.double()
    pruned.model.double()
    difference, largest = pruned.difference(model, images.double())
    return float(difference / largest)


def by_torch_pruning(name: str, size: int) -> dict[str, Any]:
    """Whether torch-pruning's own pruner does something to the network and leaves one that runs."""
    import torch_pruning

    torch.manual_seed(0)
    model, images = built(name).eval(), torch.randn(1, 3, size, size)
    count = sum(weight.numel() for weight in model.parameters())
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
    left = sum(weight.numel() for weight in model.parameters()) / count
    return {"torch_pruning": f"{left:.0%} left", "their_seconds": time.perf_counter() - start}


def in_a_process(what: str, name: str, size: int, seconds: float, gib: float) -> dict[str, Any]:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (int(gib * 2**30),) * 2)

    command = [sys.executable, __file__, "--child", what, f"{name}:{size}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, preexec_fn=limited, check=False)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        error = f"not done after {seconds:g} s"
    except (IndexError, ValueError):
        error = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return {"name": name, "outcome": "FAILED", "why": error} if what == "cut" else {"torch_pruning": error[:40]}


def line(row: dict[str, Any]) -> str:
    def pair(key: str, unit: float) -> str:
        return f"{row[key][0] / unit:.2f} → {row[key][1] / unit:.2f}" if key in row else ""

    cells = [
        row["name"], row["outcome"], pair("parameters", 1e6), pair("macs", 1e6),
        "{1:,} of {0:,}".format(*row["units"]) if "units" in row else "",
        "{:.0e}, {:.0e}".format(*row["difference"]) if "difference" in row else "",
        f"{row['seconds']:.1f}" if "seconds" in row else "",
        row.get("torch_pruning", ""), row["why"],
    ]  # fmt: skip
    return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def report(rows: list[dict[str, Any]]) -> str:
    lines = [__doc__.split("\n\n")[2].replace("\n", " ").strip(), ""]
    compared = any("torch_pruning" in row for row in rows)
    for family in ("torchvision", "timm", "other"):
        of = [r for r in rows if r["name"].split("/")[0] == family or (family == "other" and "/" not in r["name"])]
        counts = Counter(row["outcome"] for row in of)
        theirs = sum("left" in row.get("torch_pruning", "") for row in of)
        lines += [
            f"## {family}: {counts['cut']} of {len(of)} cut, {counts['refused']} refused, {counts['FAILED']} failed",
            "",
            *([f"torch-pruning's own pruner leaves a network that runs for {theirs}.", ""] if compared else []),
            "| network | outcome | parameters, M | multiply-adds, M | units removed | difference | seconds | "
            "torch-pruning | why |",
            "|---|---|---|---|---|---|---|---|---|", *map(line, of), "",
        ]  # fmt: skip
    versions = " ".join(f"{m.__name__} {m.__version__}" for m in map(__import__, ("torch", "torchvision", "timm")))
    about = (
        f"Inputs of {SIZE}×{SIZE} (larger where scripts/zoo.py says so), one thread, {versions}. parameters and "
        "multiply-adds (of one image): before → after. difference: the largest between the pruned and the masked "
        f"network's logits, as a share of the largest, in float32 (at most {TOLERANCE:g}) and in float64 (at most "
        f"{EXACT:g}). seconds: of prune() alone, with the check that it makes of each. torch-pruning, with --compare: "
        "the share of parameters that the pruner of torch-pruning 1.6.1 leaves with MagnitudeImportance (that the "
        "network still runs is all that is checked), or its error."
    )
    return "# The zoo: every network cut in half\n\n" + about + "\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as timm/resnet18 or torchvision/inception_v3:128")
    parser.add_argument("--child", choices=("cut", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--compare", action="store_true", help="try torch-pruning's own pruner as well")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--seconds", type=float, default=180, help="limit for one network")
    parser.add_argument("--gib", type=float, default=32, help="address space for one network")
    parser.add_argument("--output", type=Path, default=Path("results/zoo.md"))
    arguments = parser.parse_args()
    every = [*(f"torchvision/{n}" for n in TORCHVISION), *(f"timm/{n}" for n in TIMM), *OWN]
    if arguments.child:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        name, _, size = arguments.names[0].partition(":")
        print(json.dumps((cut if arguments.child == "cut" else by_torch_pruning)(name, int(size))))
        return

    def both(entry: str) -> dict[str, Any]:
        name, _, size = entry.partition(":")
        limits = (name, int(size or SIZE), arguments.seconds, arguments.gib)
        return in_a_process("cut", *limits) | (in_a_process("theirs", *limits) if arguments.compare else {})

    rows = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(both, arguments.names or every):
            rows.append(row)
            print(line(row), flush=True)
    if not arguments.names:
        arguments.output.write_text(report(rows))
    failed = [row["name"] for row in rows if row["outcome"] == "FAILED"]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
