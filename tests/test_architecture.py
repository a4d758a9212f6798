"""Imports run downwards, and the heavy ones wait until they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import prune_fe

ROOT = Path(prune_fe.__file__).parent
LEVELS = [
    {"errors", "openmp", "signals"},
    {"io", "file_types", "zip_seal"},
    {"records"},
    {"options", "distributed", "topology", "tracing", "charts"},
    {"scorers", "data"},
    {"measure"},
    {"scoring"},
    {"pruning", "models"},
    {"training", "ablation", "torch_pruning"},
    {"experiment"},
    {"report"},
    {"studies", "compression"},
    {"cli"},
]
"""A module imports from the levels above its own line only (and a package from itself)."""


def level(part: str) -> int:
    return next(number for number, names in enumerate(LEVELS) if part in names)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "prune_fe":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


def test_imports_run_downwards() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part in ("__init__", "__main__"):
            continue
        for used in imports(path) - {part}:
            assert level(used) < level(part), f"{path.relative_to(ROOT)} imports prune_fe.{used}"


def test_a_scorer_imports_no_other_scorer() -> None:
    shared = {
        "prune_fe.scorers.base",
        "prune_fe.scorers.counts",
        "prune_fe.scorers.kept_images",
        "prune_fe.scorers.infinite_feature_selection",
    }  # no scorers
    for path in (ROOT / "scorers").glob("*.py"):
        modules = {
            node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("prune_fe.scorers")
        }
        assert path.name == "__init__.py" or modules <= shared, path


def test_hooks_stay_in_their_files() -> None:
    for path in ROOT.rglob("*.py"):
        assert (
            path.name in ("watching.py", "calls.py", "prefix.py", "masking.py", "masked_code.py")
            or "register_forward" not in path.read_text()
        ), path


def test_the_package_imports_nothing_heavy_by_itself() -> None:
    heavy = "{'torch', 'numba', 'sklearn', 'pandas', 'altair'}"
    code = f"import sys, prune_fe.cli, prune_fe.experiment.recipe; sys.exit(not {heavy}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_is_there() -> None:
    for name in prune_fe.__all__:
        assert not isinstance(getattr(prune_fe, name), type(sys)), f"prune_fe.{name} is hidden by a module"


def test_every_module_has_a_test_file() -> None:
    tests = Path(__file__).parent
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        # The charts, a file each, are tested together.
        name = "charts/test_charts.py" if "charts" in place.parts else str(place.with_name(f"test_{place.name}"))
        assert path.name.startswith("__") or (tests / name).is_file(), f"{place} has no tests/{name}"
