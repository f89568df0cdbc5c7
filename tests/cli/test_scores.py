"""Scores on the command line: what is printed, kept, compared and refused."""

from __future__ import annotations

import re

import pytest

from tiny_runs import read

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
        (("--procedure", "foo"), "no procedure called 'foo'; (choices: ar, "),
        (("--procedure", "nelb"), "did you mean 'nelbo'?"),
        (("--procedure", "nelbo(5)"), "divide the window of 32 tokens"),
        (("--text", "nowhere.txt"), "nowhere.txt: no such file or folder"),
        (("--text", "recipe.yaml"), "recipe.yaml: is of no known text format"),
        (("--windows", "1"), "Invalid value for '--windows'"),
        (("--windows", "many"), "Invalid value for '--windows'"),
        (("--limit", "3"), "limit means something for tasks only"),
        (("--allow", "windows"), "--allow means something with --compare only"),
        (("run",), "'run' means something with --compare only"),
        (("--compare",), "--compare takes two runs, not 1"),
        (("tasks=,",), "tasks names no task"),
    ],
)
def test_eval_refuses(refused, arguments, expected):
    assert expected in refused("eval", "run", *arguments)


def test_eval_of_too_little_text_is_refused(refused, tmp_path):
    (tmp_path / "story.txt").write_text("alpha beta")
    assert "story.txt" in refused("eval", "run", "--text", tmp_path / "story.txt")


def test_eval_of_a_copied_model_needs_a_text(refused):
    assert "give --text a file or folder" in refused("eval", "run/model")


def test_an_unmasking_order_is_no_new_mode_for_a_masked_model(crossover):
    code, out, _ = crossover("eval", "run", "procedure=order(confidence)", "procedure=block(8)", "windows=2")
    assert code == 0
    assert "order(confidence) (exact): " in out and "block(8) (exact, a mode that this model was not trained" in out


def test_kept_cards_are_compared_and_different_ones_refused(crossover, refused, tmp_path):
    one, two, three = (str(tmp_path / name) for name in "abc")
    for out, windows in ((one, 4), (two, 4), (three, 5)):
        code, said, _ = crossover("eval", "run", "procedure=ar", f"windows={windows}", f"out={out}")
        assert code == 0 and f"kept: {out}/test-ar.json" in said
    code, said, _ = crossover("eval", "--compare", one, two)
    assert code == 0 and "they cannot be told apart" in said
    code, out, problem = crossover("eval", "--compare", one, three)
    assert (code, out) == (2, "") and "windows: 4 in the first, 5 in the second" in problem
    code, said, _ = crossover("eval", "--compare", one, three, "--allow", "windows", "--allow", "documents")
    assert code == 0 and "allowed to differ: windows: 4 and 5" in said
