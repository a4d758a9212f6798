"""The text of results/zoo.md."""

from __future__ import annotations

from collections import Counter
from typing import Any

from zoos.tested import TOO_LARGE, is_tested

OUTCOMES = (
    "The networks get random weights with which every channel matters (but the boxes of detectors stay near their "
    "anchors). Each is scored by filter L1, linear layers and gates included, and pruned at ratio "
    '0.5. "cut" means all of: the pruned network\'s outputs are those of the original with the same units masked; '
    "gradients reach every parameter that they reach in the masked network; the shape of the output is the same; every "
    "group lost what was asked, or the table says why not; saved and loaded it gives the same bits. Everything else is "
    '"refused" (with the reason, before anything changed) or "FAILED".'
)
"""Explanation of the outcomes, printed above the table."""

COLUMNS = (
    "Inputs of {size}×{size} (larger where scripts/zoos/networks.py says so), one thread, {versions}. parameters and "
    "multiply-adds (of one image): before → after. left: the share of the parameters. difference: the largest between "
    "the outputs of the pruned and the masked network, as a share of the largest, in float32 (at most {single:g}, or "
    "ten times what rounding changes in the whole network; not asked of detectors, whose choice of boxes it changes) "
    "and in float64 (at most {double:g}). seconds: of the processor, for prune() alone, which includes its "
    'verification of each network. The first columns are those of the engine "trace".'
)
"""Explanation of the columns."""

ENGINE = (
    'engine torch-pruning: the same call of prune() with engine="torch-pruning". "same bits": the '
    'pruned network has the tensors that "trace" gives, and is proved with it. "cut": it lost other units, and all '
    'that "cut" means for "trace" was checked. "refused", with the beginning of the reason: the error comes before '
    'anything changed, and names the layer or the network. "not done in N s": the process of this engine was ended '
    "then. left and seconds are those of this engine."
)
"""Explanation of the columns about the engine "torch-pruning"."""

TESTED = (
    "The networks that torch-pruning's tests prune: the small ones are here, under the names of their tests "
    "(scripts/zoos/tested.py), those of torchvision in the first table, all but {missing}, which have 200 million "
    'parameters and more. Of these {count} networks: engine "trace" {trace}; engine "torch-pruning" {engine}; '
    "torch-pruning's own pruner {theirs}."
)
"""Explanation of the table of torch-pruning's test networks."""

MOST_LETTERS = 110
"""Letters of a reason that a column shows."""

RIVAL = (
    "torch-pruning: the pruner of torch-pruning {version} with MagnitudeImportance and the same ratio, on the same "
    "network in float64; the layers that compute the outputs, and the numbers of heads, are given to it. left and "
    'seconds are those of its cut. its cut: "right" if its network computes what the original computes with the same '
    "channels masked (at most {double:g} apart). Which channels are left is found by looking up its weights in the "
    'original, and masking is defined as for prune_fe. "WRONG" says by how much the outputs differ, as a share of the '
    "largest. (Where heads lose channels, nn.MultiheadAttention scales by another number, which counts as a difference "
    "too; timm's attention is run with the scale that it had.)"
)
"""Explanation of the columns about torch-pruning."""

MARGIN = 0.02
"""torch-pruning is said to cut more where it leaves less by more than this share of the parameters."""


def share_left(row: dict[str, Any]) -> float | None:
    """Return the share of the parameters that prune_fe left; None if it did not cut the network."""
    return row["parameters"][1] / row["parameters"][0] if "parameters" in row else None


def format_row(row: dict[str, Any]) -> str:
    """Return a row of the table in Markdown."""

    def before_and_after(key: str, unit: float) -> str:
        return f"{row[key][0] / unit:.2f} → {row[key][1] / unit:.2f}" if key in row else ""

    left = share_left(row)
    values = [
        row["name"],
        row["outcome"],
        before_and_after("parameters", 1e6),
        "" if left is None else f"{left:.0%}",
        before_and_after("macs", 1e6),
        "{1:,} of {0:,}".format(*row["units"]) if "units" in row else "",
        "{:.0e}, {:.0e}".format(*row["difference"]) if "difference" in row else "",
        f"{row['seconds']:.1f}" if "seconds" in row else "",
        _describe_engine(row),
        f"{row['engine_left']:.0%}" if "engine_left" in row else "",
        f"{row['engine_seconds']:.1f}" if "engine_seconds" in row else "",
        row.get("their_outcome", "")[:60],
        f"{row['their_left']:.0%}" if "their_left" in row else "",
        f"{row['their_seconds']:.1f}" if "their_seconds" in row else "",
        row["why"],
    ]
    return "| " + " | ".join(str(value).replace("|", "/").replace("\n", " ") for value in values) + " |"


def _describe_engine(row: dict[str, Any]) -> str:
    """Return what the engine "torch-pruning" did with a network, and why."""
    outcome, why = row.get("engine_outcome", ""), row.get("engine_why", "")
    for needless in ("engine torch-pruning: ", '; the engine "trace" may be able to cut it'):
        why = why.replace(needless, "")
    short = why if len(why) <= MOST_LETTERS else f"{why[:MOST_LETTERS]}…"
    return f"{outcome}: {short}" if short else outcome


HEAD = (
    "| network | outcome | parameters, M | left | multiply-adds, M | units removed | difference | seconds | "
    "engine torch-pruning | left | seconds | torch-pruning: its cut | left | seconds | why |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)
"""The first lines of a table."""


def find_rows_behind(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each network that torch-pruning cuts right, and prune_fe not or less, with the reason."""
    lines = []
    for row in rows:
        if row.get("their_outcome") != "right":
            continue
        left, theirs = share_left(row), row["their_left"]
        if row["outcome"] != "cut" or left is None:
            lines.append(f"- {row['name']}: {row['outcome']}, torch-pruning leaves {theirs:.0%}. {row['why']}")
        elif left > theirs + MARGIN:
            why = row["why"] or "No group says why."
            lines.append(f"- {row['name']}: {left:.0%} are left, by torch-pruning {theirs:.0%}. {why}")
    return lines


def format_report(rows: list[dict[str, Any]], columns: str, rival: str = "") -> str:
    """Return the text of results/zoo.md.

    Args:
        rows: The rows of all networks.
        columns: COLUMNS with its numbers.
        rival: RIVAL with its numbers; "" if torch-pruning was not tried.
    """
    lines = ["# The zoo: every network cut in half", "", columns, "", OUTCOMES, ""]
    if any("engine_outcome" in row for row in rows):
        lines += [ENGINE, "", f"## The engine torch-pruning: of {len(rows)} networks, {_count_engine(rows)}", ""]
        if any("engine_outcome" not in row for row in rows):
            lines += [
                "Rows that are empty in these columns were measured before the columns existed; their networks have "
                "not been tried yet.",
                "",
            ]
    if rival:
        outcomes = Counter(_kind_of_outcome(row) for row in rows)
        summary = ", ".join(f"{count} {kind}" for kind, count in outcomes.most_common())
        behind = find_rows_behind(rows)
        lines += [rival, "", f"## Against torch-pruning: of {len(rows)} networks, {summary}", ""]
        lines += [
            "prune_fe leaves less by more than "
            f"{MARGIN:.0%} of the parameters in {sum(map(_is_ahead, rows))} networks that both cut right. "
            f"Networks that torch-pruning cuts right, and prune_fe not, or leaves more of: {len(behind)}.",
            "",
            *behind,
            *([""] if behind else []),
        ]
    families: dict[str, list[dict[str, Any]]] = {"torchvision": [], "timm": [], "other": [], "tested": []}
    for row in rows:
        families[row["name"].split("/")[0] if "/" in row["name"] else "other"].append(row)
    for family, members in families.items():
        counts = Counter(row["outcome"] for row in members)
        title = f"{counts['cut']} of {len(members)} cut, {counts['refused']} refused, {counts['FAILED']} failed"
        if family == "tested":
            if not members:
                continue
            lines += ["## torch-pruning's tests", "", _describe_tested(rows), ""]
        else:
            lines += [f"## {family}: {title}", ""]
        lines += [*HEAD, *map(format_row, members), ""]
    return "\n".join(lines)


def _count_engine(rows: list[dict[str, Any]]) -> str:
    """Return how often each outcome of the engine "torch-pruning" occurs."""
    known = ("same bits", "cut", "refused", "FAILED", "not done", "not tried")
    outcomes = [row.get("engine_outcome", "not tried") for row in rows]
    kinds = Counter(
        next((kind for kind in known if outcome.startswith(kind)), "ended by an error") for outcome in outcomes
    )
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def _describe_tested(rows: list[dict[str, Any]]) -> str:
    """Return what became of the networks of torch-pruning's tests."""
    tests = [row for row in rows if is_tested(row["name"])]
    trace = ", ".join(f"{count} {kind}" for kind, count in Counter(row["outcome"] for row in tests).most_common())
    theirs = ", ".join(f"{count} {kind}" for kind, count in Counter(map(_kind_of_outcome, tests)).most_common())
    return TESTED.format(
        missing=", ".join(TOO_LARGE), count=len(tests), trace=trace, engine=_count_engine(tests), theirs=theirs
    )


def _kind_of_outcome(row: dict[str, Any]) -> str:
    """Return what torch-pruning did with a network, in two words."""
    outcome = row.get("their_outcome", "not tried")
    if outcome == "right":
        return "cut right"
    if outcome.startswith("WRONG"):
        return "cut wrongly"
    return next(
        (known for known in ("not checked", "removes nothing", "not done", "not tried") if outcome.startswith(known)),
        "ended by an error",
    )


def _is_ahead(row: dict[str, Any]) -> bool:
    left = share_left(row)
    return row.get("their_outcome") == "right" and left is not None and left < row["their_left"] - MARGIN
