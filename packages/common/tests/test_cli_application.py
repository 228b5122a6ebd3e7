"""The shared command line: its output and exit codes."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial

import pytest

PROGRAM = textwrap.dedent(
    """
    import sys, time, warnings
    import typer
    from clip_common import cli
    from clip_common.cli import ConfigName, Overrides
    from clip_common.config import TrainerConfig, load_config

    app = cli.Application("toy", help="A toy.")

    @app.command()
    def train(overrides: Overrides = None, config: ConfigName = None) -> None:
        '''Train it.

        Example:

            toy train max_epochs=3
        '''
        print(load_config(TrainerConfig, config=config, overrides=overrides or []).max_epochs)

    @app.command()
    def fail(how: str) -> None:
        '''Fail.'''
        if how == "interrupt":
            print("ready", flush=True)
            time.sleep(60)
        if how == "warn":
            warnings.warn("something\\n odd", stacklevel=1)
            return
        raise {
            "value": ValueError("one\\n  line"),
            "missing": FileNotFoundError(2, "No such file or directory", "there.txt"),
            "full": OSError(28, "No space left on device", "here.bin"),
            "memory": type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
            "defect": KeyError("name"),
            "mismatch": RuntimeError("operator torchvision::nms does not exist"),
            "term": SystemExit(143),
        }[how]

    @app.command()
    def long() -> None:
        '''Take long.'''
        cli.display.SECONDS_BETWEEN_LINES = 0.0
        with cli.progress("counting") as report:
            for done in range(3):
                report(done + 1, 3)

    app()
    """
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "toy.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="module")
def run(program):
    def run(*arguments):
        environment = os.environ | {"COLUMNS": "200", "TERM": "dumb"}
        command = [sys.executable, str(program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


def test_a_verb_takes_overrides_and_succeeds(run):
    done = run("train", "max_epochs=3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "max_epoch=3"], "max_epoch: unknown key; did you mean max_epochs?"),
        (["train", "max_epochs=ten"], "max_epochs: expected int, got 'ten' (str)"),
        (["train", "--config", "nowhere"], "configuration 'nowhere': neither a file nor a known name"),
        (["train", "--max_epochs", "3"], "No such option: --max_epochs; see toy train --help"),
        (["tran"], "No such command 'tran'. Did you mean 'train'?; see toy --help"),
        (["fail"], "Missing argument 'how'; see toy fail --help"),
        (["fail", "value"], "one line"),
        (["fail", "missing"], f"there.txt: {os.strerror(errno.ENOENT)}"),
        (["fail", "full"], f"here.bin: {os.strerror(errno.ENOSPC)}"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_exit_code_2(run, arguments, line):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.replace("HOW", "how")) == (2, "", f"error: {line}\n")


def test_out_of_memory_says_what_a_smaller_batch_costs(run):
    line = (
        "out of GPU memory: set trainer.precision=bf16-mixed, or lower data.batch_size (which leaves a contrastive "
        "loss fewer negatives; trainer.accumulate does not bring them back)"
    )
    assert run("fail", "memory").stderr == f"error: {line}\n"


def test_a_torch_and_a_torchvision_that_do_not_match_are_one_line_with_the_way_out(run):
    done = run("fail", "mismatch")
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch and torchvision do not match")
    assert "torch torchvision\n" in done.stderr


def test_debug_shows_the_traceback_anywhere_on_the_line(run):
    for arguments in (["--debug", "fail", "value"], ["fail", "value", "--debug"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert done.stderr.endswith("error: one line\n")


def test_a_defect_is_told_from_an_error_of_the_user(run):
    done = run("fail", "defect")
    assert (done.returncode, done.stderr) == (1, "error: KeyError: 'name' (a defect; --debug shows where)\n")


def test_a_warning_is_one_line(run):
    done = run("fail", "warn")
    assert (done.returncode, done.stderr) == (0, "warning: something odd\n")


def test_an_exit_code_passes_through(run):
    assert run("fail", "term").returncode == 143


def test_ctrl_c_exits_with_130(program):
    command = [sys.executable, str(program), "fail", "interrupt"]
    # whoever runs the tests in the background may have SIGINT ignored, and children inherit that
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, preexec_fn=listening)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (130, "")


def test_help_shows_the_example_and_a_bare_call_shows_help(run):
    shown = run("train", "--help")
    assert shown.returncode == 0
    assert "toy train max_epochs=3" in shown.stdout
    assert "SECTION.FIELD=VALUE" in shown.stdout
    bare = run()
    assert (bare.returncode, bare.stderr) == (0, "")
    assert "A toy." in bare.stdout
    assert "--debug" in bare.stdout


def test_progress_in_a_pipe_is_plain_lines(run):
    assert run("long").stderr == "counting  1/3\ncounting  2/3\ncounting  3/3\n"


def test_help_does_not_import_torch(program):
    command = [sys.executable, "-X", "importtime", str(program), "train", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = [line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()]
    assert "typer" in imported
    assert not {"torch", "lightning", "numpy", "matplotlib"} & set(imported)
