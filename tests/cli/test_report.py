"""prune-fe report."""

import shutil
from pathlib import Path

from prune_fe.cli.app import main
from tests.cli.helpers import refused


def test_the_report_of_a_run_is_written_again(done, capsys):
    shutil.copytree(done[1], "run")
    page = Path("run/report.html").read_text()
    Path("run/report.html").unlink()
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out.startswith("report: run/report.html")
    assert Path("run/report.html").read_text() == page


def test_a_folder_that_is_no_run_is_named(capsys):
    Path("empty").mkdir()
    assert "empty: " in refused(capsys, 2, "report", "empty")
