"""Commands as a person gives them: what they print, how they end, and how soon."""

from __future__ import annotations

import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

import tiny_runs
from crossover import cli
from tiny_runs import read, rows

COMMANDS = sorted(getattr(typer.main.get_command(cli.app), "commands", {}))


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "CROSSOVER_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}


def process_of(place: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a command as a shell does."""
    line = [sys.executable, "-m", "crossover", *map(str, arguments)]
    return subprocess.Popen(line, env=environment(place), cwd=place, text=True, **options)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(crossover, command):
    code, out, said = crossover(command, "--help")
    assert (code, said) == (0, "")
    assert out.startswith(f"Usage: crossover {command} ")
    assert getattr(cli, f"{command}_command").__doc__.split("\n")[0] in " ".join(out.split())


HELP = """
import sys
import crossover.cli
assert not {"torch", "transformers", "numpy", "scipy", "matplotlib"} & set(sys.modules)
sys.argv = ["crossover", "--help"]
try:
    crossover.cli.main()
finally:
    assert not {"torch", "transformers"} & set(sys.modules)
"""


def test_help_answers_at_once(place):
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
        seconds.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    assert statistics.median(seconds) < 1.0


def test_doctor_says_what_there_is(crossover):
    code, out, said = crossover("doctor")
    assert (code, said) == (0, "")
    for word in (
        "versions: python",
        "device: ",
        "threads: ",
        "float32: ",
        "bfloat16: ",
        "compile: ",
        "memory: ",
        "attention, causal: ",
    ):
        assert word in out, word


def test_prepare_says_what_there_is(crossover, place):
    code, out, said = crossover("prepare", "recipe.yaml", "data.unique_tokens=5000")
    assert (code, said) == (0, "")
    assert "80 documents" in out
    assert "  5,000 unique training tokens, " in out
    assert re.search(r"dev \d+ documents, test \d+ documents", out)
    folder = Path(re.findall(r"prepared text: (\S+)", out)[0])
    assert folder.parent == place / "cache"
    assert f"data hash {read(folder / 'manifest.json')['data_hash'][:16]}" in out
    again = crossover("prepare", "recipe.yaml", "data.unique_tokens=5000")[1]
    assert again.startswith("prepared text found: ") and again.splitlines()[1:] == out.splitlines()[-4:]


def test_a_finished_run_is_not_trained_again(crossover, place):
    before = (place / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    code, out, said = crossover("train", "recipe.yaml", "--run-dir", "run")
    assert (code, said) == (0, "")
    assert "run: this run is finished; use another --run-dir or name= to train again" in out
    assert read(place / "run" / "status.json")["state"] == "finished"
    assert (place / "run" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_goes_where_its_name_says(crossover, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    code, out, said = crossover("train", place / "recipe.yaml", "name=called", "budget.tokens=512")
    assert (code, said) == (0, "")
    assert out.splitlines()[-1].startswith("runs/called: finished; scores in runs/called/scores")
    assert read(tmp_path / "runs" / "called" / "status.json")["state"] == "finished"


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_a_folder_without_a_model_is_named(refused, tmp_path, command):
    assert "nowhere: no such folder; expected a run folder or a model folder" in refused(command, "nowhere")
    assert f"{tmp_path}: holds no finished model; `crossover train` leaves one" in refused(command, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "it was not left by a run" in refused(command, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nope",), "No such command 'nope'. See `crossover --help`."),
        (("train", "recipe.yaml", "--frobnicate"), "No such option: --frobnicate. See `crossover train --help`."),
        (("train",), "Missing argument 'recipe'. See `crossover train --help`."),
        (("report", "nowhere"), "nowhere"),
        (("study", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
    ],
)
def test_wrong_usage_is_one_line(refused, arguments, expected):
    assert expected in refused(*arguments)


def test_no_command_is_answered_with_the_help(crossover):
    code, out, said = crossover()
    # The exit code is typer's, and changes with its version.
    assert code in (0, 2) and said == "" and out.startswith("Usage: crossover ")


def test_a_defect_of_the_program_keeps_its_traceback(monkeypatch):
    def broken() -> None:
        raise FileNotFoundError(2, "No such file", "/no/such/file")

    monkeypatch.setattr("crossover.training.doctor.examine", broken)
    with pytest.raises(FileNotFoundError):
        tiny_runs.command(monkeypatch, "doctor")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_says_so_and_goes_on(place, tmp_path, crossover, number):
    if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests were started with SIGINT ignored (a script's `&`), which processes inherit")
    run, more = tmp_path / "run", ("budget.tokens=51200", "training.checkpoint_every_tokens=2000")
    process = process_of(
        place, "train", "recipe.yaml", *more, "--run-dir", run, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    steps, patience = run / "steps.jsonl", time.monotonic() + 60
    while not (steps.exists() and steps.stat().st_size > 1000) and process.poll() is None:
        assert time.monotonic() < patience
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.strip() == "stopped; the same command goes on where it stopped"
    status = read(run / "status.json")
    assert status["state"] == "interrupted" and "the same command goes on" in status["why"]
    assert not (run / "model").exists()
    before = len(list((run / "checkpoints").glob("step-*")))
    assert before >= 1
    if number == signal.SIGINT:
        return
    code, out, said = crossover("train", "recipe.yaml", *more, "--run-dir", run)
    assert (code, said) == (0, "") and "finished" in out
    assert [row["step"] for row in rows(run)] == list(range(1, 101))
    assert read(run / "status.json")["state"] == "finished"


def test_a_reader_that_leaves_early_is_no_error(place):
    process = process_of(place, "prepare", "recipe.yaml", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    # What a shell gives for a command that a closed pipe has ended.
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
