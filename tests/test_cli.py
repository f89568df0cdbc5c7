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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import tiny_runs
from crossover import cli
from tiny_runs import read, rows

COMMANDS = sorted(getattr(typer.main.get_command(cli.app), "commands", {}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, a recipe, a cache, and a finished run of both kinds of objective."""
    folder = tmp_path_factory.mktemp("cli")
    source = tiny_runs.write_text(folder / "text.jsonl")
    mix = {"name": "constant", "mix": {"autoregressive": 0.5, "masked": 0.5}}
    recipe = tiny_runs.write_recipe(folder / "recipe.yaml", source, controller=mix, budget={"tokens": 8192})
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CROSSOVER_CACHE", str(folder / "cache"))
        assert tiny_runs.command(patched, "train", recipe, "--run-dir", folder / "run") == 0
    return folder


@pytest.fixture
def crossover(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Give a command in this process; returns exit code, output and errors."""
    monkeypatch.setenv("CROSSOVER_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)

    def give(*arguments: object) -> tuple[int, str, str]:
        code = tiny_runs.command(monkeypatch, *arguments)
        return code, *capsys.readouterr()

    return give


@pytest.fixture
def refused(crossover: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Give a command that must be refused in one message; returns the message."""

    def give(*arguments: object) -> str:
        code, out, said = crossover(*arguments)
        assert (code, out) == (2, ""), (code, out, said)
        assert said.startswith("error: ") and said.count("\n") == 1
        return said

    return give


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


LINE = r"(\w+) \((exact|bound)\): ([\d.]+) \+- ([\d.]+) bits per byte, ([\d.]+) \+- ([\d.]+) nats per token, perplexity"


@pytest.mark.parametrize("split", ["dev", "test"])
def test_eval_gives_the_scores_of_the_run(crossover, place, split):
    scoring = ("--windows", 4, "--draws", 2, "--positions", 2)
    code, out, said = crossover("eval", "run", "--text", split, *scoring)
    assert (code, said) == (0, "")
    found = {match[0]: match for match in re.findall(LINE, out)}
    assert set(found) == {"ar", "nelbo", "l2r"}
    headline = read(place / "run" / "scores" / "summary.json")["headline"]
    card = read(place / "run" / "scores" / f"{split}-{headline}.json")
    # The model folder holds the weights of the headline mode, so its score is the one on the card.
    assert float(found[headline][2]) == pytest.approx(card["bits_per_byte"], abs=1e-4)
    assert [found[mode][1] for mode in ("ar", "nelbo", "l2r")] == ["exact", "bound", "exact"]


def test_eval_scores_a_text_file(crossover, tmp_path):
    text = tmp_path / "story.txt"
    text.write_text("alpha beta gamma delta. " * 60)
    code, out, said = crossover("eval", "run", "--text", text, "--procedure", "ar")
    assert (code, said) == (0, "")
    assert len(out.splitlines()) == 2 and "  card: context=" in out and "weights_sha256=" in out
    assert f"{len(text.read_bytes()):,} bytes, 1 documents of {text}" in out
    assert crossover("eval", "run/model", "--text", text, "--procedure", "ar")[1] == out


def test_eval_says_when_a_mode_was_not_trained(crossover, tmp_path):
    (tmp_path / "story.txt").write_text("alpha beta gamma delta. " * 30)
    code, out, _ = crossover("eval", "run", "--text", tmp_path / "story.txt", "--procedure", "nelbo(8)", "--draws", 2)
    assert code == 0
    assert out.startswith("nelbo(8) (bound, a mode that this model was not trained for): ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--procedure", "foo"), "no procedure called 'foo'; (choices: ar, l2r, nelbo, nelbo(16))"),
        (("--procedure", "nelb"), "did you mean 'nelbo'?"),
        (("--procedure", "nelbo(5)"), "divide the window of 32 tokens"),
        (("--text", "nowhere.txt"), "nowhere.txt: no such file or folder"),
        (("--text", "recipe.yaml"), "recipe.yaml: is of no known text format"),
        (("--windows", "1"), "Invalid value for '--windows'"),
        (("--windows", "many"), "Invalid value for '--windows'"),
    ],
)
def test_eval_refuses(refused, arguments, expected):
    assert expected in refused("eval", "run", *arguments)


def test_eval_of_too_little_text_is_refused(refused, tmp_path):
    (tmp_path / "story.txt").write_text("alpha beta")
    assert "story.txt" in refused("eval", "run", "--text", tmp_path / "story.txt")


def test_eval_of_a_copied_model_needs_a_text(refused):
    assert "give --text a file or folder" in refused("eval", "run/model")


@pytest.mark.parametrize("mode", ["ar", "masked"])
def test_sample_writes_text(crossover, mode):
    arguments = ("sample", "run", "--prompt", "alpha beta", "--tokens", 12, "--mode", mode)
    code, out, note = crossover(*arguments)
    assert code == 0
    assert out.startswith("alpha beta") and out.endswith("\n")
    assert re.fullmatch(rf"\[{mode}, \d+ tokens, \d+ forward passes, \d+ tokens/s, seed 0\]\n", note)
    assert crossover(*arguments)[1] == out
    # Without a wish, as much as the window holds is written.
    assert crossover("sample", "run", "--prompt", "alpha " * 8, "--mode", mode)[0] == 0
    others = {crossover(*arguments, "--seed", seed, "--temperature", 2)[1] for seed in (1, 2, 3)}
    assert len(others) > 1


def test_sample_uses_the_best_mode(crossover, place):
    headline = read(place / "run" / "scores" / "summary.json")["headline"]
    _, _, note = crossover("sample", "run", "--tokens", 4)
    assert note.startswith("[ar," if headline == "ar" else "[masked,")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--tokens", "33"), "0 tokens and 33 new ones exceed the model's window of 32 tokens; draw at most 32"),
        (("--prompt", "alpha " * 40), "or shorten the prompt"),
        (("--mode", "block"), "cannot sample in mode 'block'; this model has: ar, masked"),
        (("--temperature", "-1"), "temperature must not be negative"),
        (("--temperature", "nan"), "temperature must be a finite number"),
        (("--tokens", "0"), "Invalid value for '--tokens'"),
        (("--prompt", "caf\udce9"), "the prompt is not UTF-8 text"),
    ],
)
def test_sample_refuses(refused, arguments, expected):
    assert expected in refused("sample", "run", *arguments)


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
