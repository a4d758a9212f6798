"""The command line as a whole: words, help, faults and exit codes."""

import os
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from torch._utils import ExceptionWrapper

import prune_fe.experiment.run
from prune_fe.cli.app import app, main
from prune_fe.errors import DataError
from tests.cli.helpers import TINY, names, refused

COMMANDS = ("run", "inspect", "score", "study", "sensitivity", "prune", "finetune", "evaluate", "export")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], 'Unknown command "rum". Did you mean "run"?'),
        (["run"], 'Command "run" parameter --recipe requires an argument.'),
        (["run", "a.yaml", "--deivce", "cpu"], "Unknown option: --deivce. Did you mean --device?"),
        (["run", "a.yaml", "--threads", "x"], 'Invalid value for --threads: unable to convert "x" into int.'),
        (["run", "none.yaml"], "none.yaml: No such file or directory"),
        (["score"], "--model"),
        (
            ["score", "--model", "m", "--scorer", "l1-filtr"],
            "--scorer l1-filtr: did you mean 'l1-filter' or 'l2-filter'?",
        ),
        (["score", "--model", "m", "--scorer", "random", "random"], "--scorer random: given twice"),
        (["score", "--model", "m", "--checkpoint", "a", "--from-checkpoints", "b"], "give one of them"),
        (["study", "rescalin", "a.yaml"], "study 'rescalin': did you mean 'rescaling'?"),
        (
            ["study"],
            "study: name one of characterisation, classes, explanation, generalisation, layers, "
            "randomness, ratio, rescaling, samples, training",
        ),
        (["study", "rescaling", "none.yaml"], "none.yaml: No such file or directory"),
        (["score", "--model", "m", "--samples", "0"], 'Invalid value "0" for --samples. Must be >= 1.'),
        (["score", "--model", "m", "--batch-size", "0"], 'Invalid value "0" for --batch-size. Must be >= 1.'),
        (["score", "--model", "m", "--workers", "-1"], 'Invalid value "-1" for --workers. Must be >= 0.'),
        (["score", "--model", "m", "--size", "0"], 'Invalid value "0" for --size. Must be >= 1.'),
        (["score", "--model", "m", "--device", "tpu"], "Allowed are auto, cpu, cuda, cuda:N and mps."),
        (["score", "--model", "m"], "scorer 'feature-entropy' needs images: pass --data PATH"),
        (["prune", "--model", "m", "--scores", "s", "--ratio", "1"], "--ratio: input should be less than 1 (got 1.0)"),
        (["prune", "--model", "m", "--scores", "s", "--ratio", "nan"], "--ratio: input should be"),
        (["prune", "--model", "m", "--scores", "s", "--ratio", "x=y"], "--ratio: x=y: write a share such as 0.5, or"),
        (
            ["prune", "--model", "m", "--scores", "s", "--ratio", "0.5", "a=0.1"],
            "--ratio 0.5 a=0.1: one share for all layers, or",
        ),
        (
            ["prune", "--model", "m", "--scores", "s", "--target-macs", "0"],
            "--target-macs: input should be greater than 0 (got 0.0)",
        ),
        (
            ["prune", "--model", "m", "--scores", "s", "--round-to", "0"],
            "--round-to: input should be greater than or equal to 1 (got 0)",
        ),
        (["prune", "--model", "m", "--scores", "s", "--scope", "iner"], 'Did you mean "inner"?'),
        (["prune", "--model", "m", "--scores", "s", "--recalibrate", "9"], "--recalibrate needs training images: pass"),
        (
            ["prune", "--model", "m", "--scores", "s", "--ratio", ".5", "--target-macs", ".5"],
            "ratio and target_macs were given; a network is pruned by one of them",
        ),
        (
            ["finetune", "--model", "m", "--data", "digits", "--epochs", "0"],
            "--epochs: input should be greater than or equal to 1 (got 0)",
        ),
        (
            ["finetune", "--model", "m", "--data", "digits", "--lr", "nan"],
            "--lr: input should be a finite number (got nan)",
        ),
        (["evaluate", "--model", "m"], "pass --data PATH, or --latency for the time alone"),
        (["evaluate", "--model", "m", "--data", "digits", "--threads", "1", "2"], "and --seconds need --latency"),
        (["evaluate", "--model", "vgg-small", "--latency"], "vgg-small is not a saved model; say with --against what"),
        (["evaluate", "--model", "m", "--latency", "--batch-sizes", "1", "0"], "for --batch-sizes. Must be >= 1."),
        (["evaluate", "--model", "m", "--latency", "--dtype", "int8"], 'Invalid value "int8" for --dtype.'),
        (["evaluate", "--model", "m", "--latency", "--seconds", "0"], "for --seconds. Must be > 0."),
        (["evaluate", "--model", "nomodel", "--data", "digits"], "unknown model 'nomodel'"),
        (["evaluate", "--model", "vgg-small", "--data", "digits", "--size", "2"], "size: input should be greater than"),
        (
            ["score", "--model", "vgg-small", "--scorer", "l1-filter", "--size", "2"],
            "vgg-small does not run on images of 3×2×2",
        ),
    ],
)
def test_a_wrong_word_is_refused_in_one_line_with_a_hint(capsys, tmp_path, words, message):
    assert message in refused(capsys, 2, *words)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [["--help"], *[[name, "--help"] for name in COMMANDS], ["rum"], ["run", "bad.yaml"], ["score", "--modl", "x"]],
)
def test_help_a_typo_and_a_bad_recipe_do_not_load_torch(tmp_path, words):
    (tmp_path / "bad.yaml").write_text(TINY + "prune: {ratio: 2}\n")
    code = f"import sys; from prune_fe.cli.app import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_every_customary_flag_is_there(capsys):
    expected = {
        "run": "--config -c --data --data-dir --data-path --output --output-dir --resume --seed --device --workers -j",
        "score": "--model --data --data-dir --output --batch-size -b --workers -j --device --seed --set",
        "prune": "--model --ratio --pruning-ratio --output --output-dir --device",
        "finetune": "--model --data --epochs --lr --momentum --weight-decay --wd --batch-size -b --workers -j --device "
        "--amp --seed --output --output-dir",
        "evaluate": "--model --data --data-dir --data-path --batch-size -b --workers -j --device --latency --against "
        "--batch-sizes --threads --dtype --memory-format --seconds",
    }
    for command, flags in expected.items():
        assert main([command, "--help"]) == 0
        printed = capsys.readouterr().out.replace("│", " ").split()
        assert set(flags.split()) <= set(printed), command


def test_underscores_in_an_option_are_understood(capsys):
    assert 'Invalid value "0" for --batch_size' in refused(capsys, 2, "score", "--model", "m", "--batch_size", "0")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_130_and_keeps_the_run(recipe, capsys, monkeypatch, number):
    monkeypatch.setattr(prune_fe.experiment.run, "run", lambda *_: os.kill(os.getpid(), number))
    before = signal.getsignal(signal.SIGTERM)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # which background jobs ignore
    message = refused(capsys, 130, "run", recipe)
    signal.signal(signal.SIGINT, inherited)
    assert message == "interrupted; `prune-fe run ... --resume auto` continues after the last finished step"
    assert names("runs") == ["tiny-1"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device", "x/y"), 5, "x/y: no space left"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried …"), 5, "out of memory; use a smaller batch size"),
        (MemoryError(), 5, "out of memory; use a smaller batch size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 5, "out of memory; use a smaller"),
        (ZeroDivisionError("a\nb"), 1, "ZeroDivisionError: a b (unexpected; --debug shows where)"),
        (DataError("class '\x1b[31m'\nx\u202e"), 3, r"class '\x1b[31m' x\u202e"),
    ],
)
def test_every_fault_is_one_line_and_a_traceback_with_debug_only(recipe, capsys, monkeypatch, error, code, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(prune_fe.experiment.run, "run", fail)
    assert message in refused(capsys, code, "run", recipe)
    assert main(["run", str(recipe), "--debug"]) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_fault_in_a_process_that_reads_images_is_one_line_too(recipe, capsys, monkeypatch):
    def fail(*_):
        try:
            raise DataError("photos/a: b.png: not an image")
        except DataError:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    monkeypatch.setattr(prune_fe.experiment.run, "run", fail)
    assert refused(capsys, 3, "run", recipe) == "photos/a: b.png: not an image"


def test_a_character_that_cannot_be_printed_does_not_end_a_run(recipe):
    imports = "from prune_fe.cli.app import main; from prune_fe.cli.output import reporter"
    code = f"{imports}; main(['--version']); reporter.say('16×16 ± …')"
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=ascii_only, capture_output=True, text=True, check=True)
    assert r"16\xd716" in done.stdout


def test_a_signal_while_python_imports_is_one_line(tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        code = f"""
import os, signal, sys, prune_fe.__main__ as program
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "cyclopts":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Finder())
program.main()
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr, done.stdout) == (130, "prune-fe: interrupted\n", "")


def test_a_second_signal_ends_at_once_and_an_interruption_is_seen_behind_other_errors(recipe):
    lines = """
import os, signal, sys, prune_fe.experiment.run
from prune_fe.cli.app import app, main
signal.signal(signal.SIGINT, signal.default_int_handler)
def work(*_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        AFTER
prune_fe.experiment.run.run = work
sys.exit(main(["run", sys.argv[1]]))
"""
    for after, expected in (
        ("os.kill(os.getpid(), signal.SIGTERM)", "prune-fe: interrupted a second time, stopped at once"),
        ("raise ImportError('of a half imported module')", "prune-fe: interrupted; `prune-fe run ... --resume"),
    ):
        words = [sys.executable, "-c", lines.replace("AFTER", after), str(recipe)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (130, 1)
        assert done.stderr.startswith(expected)


def test_an_interruption_during_exec_ends_with_130_too(recipe):
    """CPython 3.11 ends itself by SIGINT if exec() was interrupted, also where the exception was handled."""
    code = """
import os, signal, sys, prune_fe.experiment.run
import prune_fe.__main__ as program
signal.signal(signal.SIGINT, signal.default_int_handler)
prune_fe.experiment.run.run = lambda *_: exec("import os; os.kill(os.getpid(), 2)")
sys.argv = ["prune-fe", "run", sys.argv[1]]
program.run()
"""
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1)


def test_the_version_has_a_short_name(capsys):
    assert main(["-V"]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()


def test_quiet_prints_errors_only_and_the_next_command_speaks_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["score", "--model", "vgg-small", "--size", "16", "--num-classes", "3", "--scorer", "l1-filter"]
    assert main([*words, "--quiet", "--output", "one"]) == 0
    assert capsys.readouterr().out == ""
    assert names(".") == ["one"]
    assert main([*words, "--output", "two"]) == 0
    assert "l1-filter" in capsys.readouterr().out


def test_completion_can_be_installed():
    assert "prune-fe" in app.generate_completion(shell="bash")


def test_warnings_are_notes_without_the_place_in_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(*_: object, **__: object) -> None:
        warnings.warn("a layer is left out", stacklevel=1)

    monkeypatch.setattr("prune_fe.cli.app.app", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["run"]) == 0
        assert capsys.readouterr().err == "note: a layer is left out\n"
        assert main(["run", "--quiet"]) == 0
        assert capsys.readouterr().err == ""
