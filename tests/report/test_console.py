"""What the console shows: tables and progress."""

import dataclasses
import io
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

import prune_fe.experiment.run
from prune_fe.measure.latency import Comparison, Latency, Setting
from prune_fe.report.console import (
    ConsoleReporter,
    WideTable,
    inspection_table,
    latency_table,
    list_reasons,
    results_table,
)


def row(**fields):
    known: dict[str, Any] = dict.fromkeys(
        (field.name for field in dataclasses.fields(prune_fe.experiment.run.Row)), 0.5
    )
    return prune_fe.experiment.run.Row(
        **known
        | {"scorer": "a-scorer", "seed": 0, "parameters": 1234, "macs": 5e9, "timed_with": "", "processor_share": 1.0}
        | fields
    )


def printed(rows, width=100):
    out = io.StringIO()
    Console(file=out, width=width).print(results_table(rows))
    return out.getvalue()


def test_the_table_shows_the_spread_over_seeds_and_their_number():
    text = printed([row(seed=0, accuracy_finetuned=0.9), row(seed=1, accuracy_finetuned=0.8)])
    assert "over 2 seeds" in text
    assert "85.00 ±7.07%" in text
    assert "one seed" in printed([row(accuracy_finetuned=None)])


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_wide_table_is_printed_in_parts_and_never_cut(width):
    out = io.StringIO()
    columns = {f"class selectivity {i}, index": ["2.081e-05", "-1.1", "0.5 (0.2)"] for i in range(7)}
    rows = ["×, ×", "half scale, half scale", "a" * 40]
    Console(file=out, width=width).print(WideTable("title", "caption", rows, columns))
    printed = out.getvalue()
    assert printed.count("2.081e-05") == printed.count("0.5 (0.2)") == 7
    assert (printed.count("title"), printed.count("caption"), printed.count("…")) == (1, 1, 0)
    assert max(map(len, printed.splitlines())) <= width


def test_the_table_fits_into_80_columns_without_a_word_lost():
    text = printed([row(scorer="class-selectivity", images_per_second=123456.0)], width=80)
    assert "…" not in text
    for word in ("class-selectivity", "123,456", "1.23k", "5.00G", "50.00%"):
        assert word in text


def test_a_speed_that_was_measured_on_a_busy_machine_is_marked():
    text = printed([row(images_per_second=21.0, processor_share=0.3), row(scorer="b", images_per_second=483.0)], 200)
    assert "21*" in text
    assert "* timed while the machine was busy with other work" in text
    assert "483 " in text
    assert "*" not in printed([row()])


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    tick = ConsoleReporter(Console(file=out, width=80)).progress("scoring")
    for step in range(60):
        now[0] += 1.0
        tick(step + 1, 60)
    assert out.getvalue().splitlines() == [f"  scoring: {n} of 60" for n in (15, 30, 45, 60)]


def test_a_long_step_says_how_long_it_will_take_at_its_own_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out = io.StringIO()
    tick = ConsoleReporter(Console(file=out, width=80)).progress("training")
    for step in range(500, 516):  # 499 steps were finished before
        now[0] += 1.0
        tick(step, 1100)
    assert out.getvalue().splitlines() == ["  training: 514 of 1100, about 10 minutes left"]


def test_after_an_exception_progress_is_shown_again():
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, width=80, force_terminal=True))
    with pytest.raises(RuntimeError, match="a fault"), reporter.showing():
        reporter.progress("scoring")(1, 2)
        raise RuntimeError("a fault")
    assert reporter._bars is None
    with reporter.showing():
        reporter.progress("training")(1, 2)
        bars = reporter._bars
        assert bars is not None
        assert [task.description for task in bars.tasks] == ["training"]
        reporter.progress("training")(2, 2)
        assert not bars.tasks[-1].visible
    assert "training" in out.getvalue()
    assert reporter._bars is None


def test_the_table_of_latencies_says_once_what_all_settings_share():
    comparisons = []
    for share, batch_size in ((0.5, 1), (0.25, 32)):
        setting = Setting(batch_size, 1, "float32", "contiguous", "cpu")
        before, after = (Latency(name, setting, ms, ms, ms, 20, 2.5) for name, ms in (("o", 10.0), ("p", 10 * share)))
        low, high = 1 / (share + 0.01), 1 / (share - 0.01)
        comparisons.append(Comparison(setting, before, after, 1 / share, low, high))
    table = latency_table(comparisons)
    assert table.what == "batch size"
    assert table.rows == ["1", "32"]
    assert table.caption.startswith("threads 1, dtype float32, memory format contiguous, device cpu")
    assert table.columns == {
        "original, ms": ["10.00 [10.00–10.00]"] * 2,
        "pruned, ms": ["5.00 [5.00–5.00]", "2.50 [2.50–2.50]"],
        "original / pruned": ["2.00 [1.96–2.04]", "4.00 [3.85–4.17]"],
        "peak MiB": ["2.5 → 2.5"] * 2,
    }


def test_an_inspected_network_is_a_row_a_layer_and_a_line_for_each_reason():
    layers = pd.DataFrame(
        [
            ["a", 8, 4, 4, "1", "b", 6, 2, "", 100, 3000],
            ["norm", None, None, None, "", "", None, None, "", 16, 0],
            ["b", 8, 4, 4, "1", "a", 6, 2, "", 100, 1000],
            ["fc", 2, None, None, "", "", 0, None, "the network's outputs", 100, 0],
        ],
        columns="layer units map_height map_width groups tied_to removable step reason parameters macs".split(),
    ).convert_dtypes()
    out = io.StringIO()
    Console(file=out, width=120).print(inspection_table(layers))
    text = out.getvalue()
    for part in ("4×4", "6 by 2", "3.00k  75.0%", "100  31.6%", "parameters 316, multiply-adds 4,000 an image"):
        assert part in text
    assert "of these 16 and 0 in norms and other modules" in text
    assert list(list_reasons(layers)) == ["group 1, tied: a, b", "cannot be removed (the network's outputs): fc"]
