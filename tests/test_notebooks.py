"""The notebooks under recipes/ run from the first cell to the last."""

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_what_it_shows_has_a_form_for_notebooks(
    path: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads(path.read_text())["cells"]
    names: dict[str, Any] = {}
    shown = []
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []  # a committed output would be that of another version
        *statements, last = "".join(cell["source"]).rstrip().split("\n")
        exec(compile("\n".join(statements), str(path), "exec"), names)
        shown.append(eval(compile(last, str(path), "eval"), names))
    assert "Scores(taylor: " in repr(shown[1])
    assert "% of the multiply-adds" in repr(shown[2])
    for value in (shown[1], shown[2], shown[5]):
        assert value._repr_html_().startswith("<p>")
        assert "<table" in value._repr_html_()
        assert len(repr(value)) < 200
        assert not value.to_pandas().empty
        # Its colours are written out: a notebook has no style sheet of the page.
        assert "var(--" not in value.plot().to_json()
