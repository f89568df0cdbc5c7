"""Generated text on the command line."""

from __future__ import annotations

import re

import pytest

from tiny_runs import read


@pytest.mark.parametrize("mode", ["ar", "masked"])
def test_sample_writes_text(crossover, mode):
    arguments = ("sample", "run", "--prompt", "alpha beta", "--tokens", 12, "--mode", mode)
    code, out, note = crossover(*arguments)
    assert code == 0
    assert out.startswith("alpha beta") and out.endswith("\n")
    assert re.fullmatch(
        rf"\[{mode}, \d+ tokens, \d+ forward passes, [\d.]+ [kMG]?FLOPs, \d+ tokens/s, seed 0\]\n", note
    )
    assert crossover(*arguments)[1] == out
    # Without a wish, as much as the window holds is written.
    assert crossover("sample", "run", "--prompt", "alpha " * 8, "--mode", mode)[0] == 0
    others = {crossover(*arguments, "--seed", seed, "--temperature", 2)[1] for seed in (1, 2, 3)}
    assert len(others) > 1


def test_texts_are_kept_with_their_prices_where_reports_look_for_them(crossover, refused, place):
    kept = place / "run" / "samples" / "two.json"
    drawn = ("sample", "run", "--prompt", "alpha beta", "--tokens", 6, "--mode", "ar", "--samples", 2)
    code, out, _ = crossover(*drawn, "--out", kept)
    first, second = read(kept)["samples"]
    assert code == 0 and out == first["text"] + "\n" + second["text"] + "\n"
    assert first["prompt"] == "alpha beta" and first["mode"] == "ar" and first["seed"] == 0
    assert first["tokens"] <= 6 and first["passes"] > 0 and first["flops"] > 0
    crossover("sample", "run", "--infill", "alpha <mask:2> beta", "--mode", "masked", "--out", kept)
    assert read(kept)["samples"][0]["prompt"] == "alpha <mask:2> beta"
    kept.unlink()
    assert "expected a file name that ends in .json" in refused(*drawn, "--out", "texts.txt")


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
        (("--temperature", "-1"), "temperature must be finite and not negative; it is -1"),
        (("--temperature", "nan"), "temperature must be finite and not negative; it is nan"),
        (("--tokens", "0"), "samples, batch and tokens must be at least 1"),
        (("--prompt", "caf\udce9"), "the prompt is not UTF-8 text"),
        (("--prompt", "alpha", "--infill", "a <mask:2>"), "give one of a prompt"),
        (("--infill", "alpha"), "write <mask:8> for a hole"),
        (("--prompts", "nowhere.txt"), "nowhere.txt: cannot be read as prompts"),
        (("--unmasking", "confidense"), "did you mean 'confidence'?"),
        (("mod=ar",), "No such option: --mod"),
        (("--embedding", "run"), "MAUVE needs three"),
        (("--references", "text.jsonl"), "add --embedding"),
        (("--judge", "nowhere"), "nowhere: no such folder"),
    ],
)
def test_sample_refuses(refused, arguments, expected):
    assert expected in refused("sample", "run", *arguments)


def test_options_may_be_written_as_settings(crossover):
    plain = crossover("sample", "run", "--prompt", "mode=x", "--tokens", 5, "--mode", "masked", "--seed", 3)
    # The value of an option is no setting, whatever it looks like.
    assert plain[0] == 0 and plain[1].startswith("mode=x")
    settings = crossover("sample", "run", "prompt=mode=x", "tokens=5", "mode=masked", "seed=3")
    assert settings[:2] == plain[:2]


def test_holes_are_filled_in(crossover):
    code, out, note = crossover("sample", "run", "--infill", "alpha <mask:3> beta", "unmasking=confidence(2)")
    assert code == 0 and note.startswith("[masked, 3 tokens, 2 forward passes, ")
    assert out.startswith("alpha ") and out.endswith(" beta\n")


def test_prompts_come_from_a_file_and_a_batch_changes_nothing(crossover, tmp_path):
    (tmp_path / "prompts.txt").write_text("alpha\nbeta gamma\n")
    together = crossover("sample", "run", "prompts=" + str(tmp_path / "prompts.txt"), "samples=2", "tokens=6")
    alone = crossover("sample", "run", "prompts=" + str(tmp_path / "prompts.txt"), "samples=2", "tokens=6", "batch=1")
    assert together[0] == 0 and together[1] == alone[1]
    assert together[2].count("forward passes") == 4
    assert sum(line.startswith(("alpha", "beta gamma")) for line in together[1].splitlines()) >= 4


def test_a_judge_never_gives_perplexity_alone(crossover):
    code, out, _ = crossover("sample", "run", "samples=4", "tokens=12", "mode=masked", "--judge", "run")
    assert code == 0
    assert re.search(r"generative perplexity [\d.]+ \+- [\d.]+, unigram entropy [\d.]+ \+- [\d.]+ nats", out)
    assert re.search(r"judge \S*run \(sha256 ", out) and "4 samples of" in out
