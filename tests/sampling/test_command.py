"""What is asked on the command line is done, priced and shown, or refused with what to do instead."""

import io
import json
import os
import re
import threading
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers

import tiny
from crossover.data.tokenizer import Bytes, Tokenizer
from crossover.errors import RecipeError
from crossover.sampling import command
from crossover.sampling.command import sample_folder
from crossover.sampling.request import Request
from crossover.sampling.screen import HIDDEN, Screen

T = 24
FOLDER = Path("folder")
ALL = {"modes": ["ar", "nelbo", "l2r", "nelbo(4)", "nelbo(8, causal)", "order(confidence)"], "best_mode": "nelbo(4)"}


@pytest.fixture(scope="module")
def tokenizer():
    return Bytes().fit(())


@pytest.fixture(autouse=True)
def opened(monkeypatch, tokenizer):
    """The folder's model; a test may change what it says about itself."""
    facts, model = dict(ALL), tiny.model(tokenizer.vocabulary, T)
    monkeypatch.setattr(command, "open_model", lambda folder: (model, tokenizer, facts))
    return facts


def write(**options) -> list:
    return list(sample_folder(FOLDER, Request(**options)))


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({"mode": "ar"}, "ar"),
        ({"mode": "masked"}, "masked"),
        ({"mode": "block(4)"}, "block(4)"),
        ({"mode": "block(8)", "unmasking": "entropy(0.5)"}, "block(8)"),
        ({"mode": "block"}, "block(4)"),
        ({"mode": "block(1)"}, "ar"),
        ({"mode": f"block({T})", "guidance": 0.5}, "masked"),
        ({}, "block(4)"),
    ],
)
def test_a_mode_is_sampled_and_priced(options, mode) -> None:
    (made,) = write(prompt="ab", tokens=9, **options)
    assert made.text.startswith("ab")
    assert re.fullmatch(
        rf"\[{re.escape(mode)}, \d+ tokens, \d+ forward passes, [\d.]+ [kMG]?FLOPs, \d+ tokens/s, seed 0\]", made.note
    )
    assert made.generation.window_ids[:2] == (97, 98) and len(made.generation.ids) <= 9
    assert made.text == "ab" + made.generation.pieces[0]


def test_the_best_mode_is_the_default_and_infilling_needs_one_that_sees_both_sides(opened) -> None:
    opened["best_mode"] = "ar"
    assert write(tokens=2)[0].note.startswith("[ar,")
    assert write(infill="a<mask:2>b")[0].note.startswith("[masked,")
    opened["modes"] = ["ar"]
    with pytest.raises(RecipeError, match="cannot fill it in; this model has no other mode"):
        write(infill="a<mask:2>b")
    with pytest.raises(RecipeError, match="cannot fill it in; this model has"):
        write(infill="a<mask:2>b", mode="ar")


@pytest.mark.parametrize("mode", ["masked", "block(4)", "block(8)"])
def test_holes_are_filled_between_given_text(mode, tokenizer) -> None:
    for seed in range(5):
        (made,) = write(infill="one <mask:3> two <mask:2>!", mode=mode, seed=seed)
        window, words = made.generation.window_ids, tokenizer.vocabulary
        assert len(window) == len("one ") + 3 + len(" two ") + 2 + len("!")
        assert tokenizer.decode(window[:4]) == "one " and tokenizer.decode(window[7:12]) == " two "
        assert window[-1] == ord("!") and words.mask_id not in window and words.eos_id not in window
        assert len(made.generation.ids) == 5 and len(made.generation.pieces) == 2


def test_samples_and_prompts_have_numbers_and_the_batch_has_no_say(tmp_path) -> None:
    lines, rows = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    lines.write_text("first\n\nthird one\n")
    rows.write_text('{"prompt": "first"}\n{"prompt": ""}\n{"prompt": "third one"}\n')
    for mode in ("ar", "masked", "block(4)"):
        options = {"tokens": 6, "samples": 2, "mode": mode, "seed": 3}
        made = write(prompts_file=lines, batch=16, **options)
        assert [item.generation.number for item in made] == list(range(6))
        for start, item in zip(["first", "first", "", "", "third one", "third one"], made, strict=True):
            assert item.text.startswith(start)
        assert made[0].text != made[1].text
        for other in (write(prompts_file=rows, batch=4, **options), write(prompts_file=lines, batch=1, **options)):
            assert [item.text for item in other] == [item.text for item in made]


def test_without_a_wish_as_much_is_drawn_as_the_window_holds(opened) -> None:
    assert len(write(prompt="x" * (T - 3), mode="masked", seed=1)[0].generation.window_ids) <= T
    with pytest.raises(RecipeError, match="or shorten the prompt"):
        write(prompt="x" * T)


def test_a_stop_string_ends_the_text() -> None:
    whole = write(prompt="ab", tokens=10, mode="ar")[0].text
    stop = whole[5]
    (made,) = write(prompt="ab", tokens=10, mode="ar", stop=(stop,))
    assert made.text == "ab" + whole[2:].split(stop)[0]
    assert made.generation.ended == "stop"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tokens": T + 1}, f"0 tokens and {T + 1} new ones exceed the model's window of {T} tokens; draw at most {T}"),
        (
            {"mode": "block(16)"},
            r"'block\(16\)': the block does not divide the window of 24 tokens; use 1, 2, 3, 4, 6, 8, 12, 24",
        ),
        (
            {"mode": "block(6)"},
            r"cannot sample in mode 'block\(6\)'; this model has: ar, masked, block\(4\), block\(8\)",
        ),
        ({"mode": "blok"}, "cannot sample in mode 'blok'"),
        ({"mode": "ar", "unmasking": "confidence"}, "unmasking has no effect in mode 'ar'"),
        ({"mode": "ar", "guidance": 1.0, "prompt": "a"}, "guidance has no effect in mode 'ar'"),
        ({"mode": "masked", "guidance": 1.0}, "guidance needs a prompt"),
        ({"infill": "no hole"}, "write <mask:8> for a hole of 8 tokens"),
        ({"infill": "a <mask:0> b"}, "has no hole, or an empty one"),
        ({"infill": "a <mask:30> b"}, "the text to be filled in has 34 tokens with its holes, more than the model's"),
        ({"infill": "a <mask:3> b", "tokens": 4}, "its holes say how many"),
        ({"infill": "a <mask:3> b", "prompt": "c"}, "give one of a prompt"),
        ({"infill": "a <mask:3> b", "stop": ("x",)}, "a stop string has no effect where given text stands behind"),
        ({"prompt": "caf\udce9"}, "the prompt is not UTF-8 text"),
        ({"infill": "caf\udce9<mask:2>"}, "the text to be filled in is not UTF-8 text"),
        ({"samples": 0}, "at least 1"),
        ({"temperature": -1.0}, "temperature must be finite and not negative; it is -1"),
        ({"stop": ("",)}, "a stop string must not be empty"),
        ({"unmasking": "sideways"}, "no way of unmasking called 'sideways'"),
        ({"unmasking": "confidence(x)"}, r"expected confidence\(int\), or fewer arguments"),
        ({"unmasking": "margin(1, 2)"}, r"expected margin\(int\)"),
        ({"unmasking": "ancestral(0)"}, "steps must be at least 1"),
        ({"unmasking": "remasking(8, 2)"}, "cap must lie in"),
        ({"unmasking": "entropy(-1)"}, "gamma must be"),
        ({"prompts_file": Path("nowhere.txt")}, "nowhere.txt: cannot be read as prompts"),
    ],
)
def test_what_cannot_be_is_refused(options, expected) -> None:
    with pytest.raises(RecipeError, match=expected):
        write(**options)


def test_a_line_of_prompts_ends_where_the_format_says(tmp_path) -> None:
    """Python's own idea of a line also ends at characters that JSON leaves as they are inside a string."""
    prompts, rows = ["a\u2028b", "c\x0cd", "e"], tmp_path / "prompts.jsonl"
    rows.write_text("\r\n".join(json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts), "utf-8")
    assert Request(prompts_file=rows).prompts() == prompts
    lines = tmp_path / "prompts.txt"
    lines.write_text("\n".join(prompts) + "\n", "utf-8")
    assert Request(prompts_file=lines).prompts() == prompts


def test_prompts_may_come_through_a_pipe(tmp_path) -> None:
    pipe = tmp_path / "prompts.txt"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("ab\ncd\n",), daemon=True)
    writer.start()
    made = write(prompts_file=pipe, tokens=3, mode="ar")
    writer.join()
    assert [item.text[:2] for item in made] == ["ab", "cd"]


@pytest.mark.parametrize("infill", ["a<mask:1>b", "a<mask:1> b", " a<mask:2><mask:1>  b<mask:1>", "<mask:1>b a"])
def test_a_hole_adds_no_space_to_what_stands_behind_it(infill) -> None:
    """Also where the tokenizer puts a space before every text that it is given."""
    pieces = ["<unk>", "\n", "▁", "a", "b", "c", "▁a", "▁b"]
    engine = Engine(models.Unigram([(piece, -2.0) for piece in pieces], unk_id=0))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    engine.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = Tokenizer.with_specials(engine)
    assert tokenizer.adds_space
    (ids,) = Request(infill=infill).ids(tokenizer, [])
    filled = [pieces.index("c") if token == tokenizer.vocabulary.mask_id else token for token in ids]
    # A text that begins with a hole begins with what is drawn there, as the tokenizer writes it.
    assert tokenizer.decode(filled) == re.sub("<mask:(.)>", lambda hole: "c" * int(hole[1]), infill)


@pytest.mark.parametrize(("name", "text"), [("a.txt", ""), ("b.jsonl", '{"text": "x"}\n'), ("c.jsonl", "not json\n")])
def test_a_file_without_prompts_is_refused(tmp_path, name, text) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=name):
        write(prompts_file=tmp_path / name)


def test_a_terminal_shows_what_is_still_hidden(tokenizer) -> None:
    words = tokenizer.vocabulary
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with Screen(tokenizer.decode, words.mask_id, console=console) as screen:
        assert screen.visible
        screen.show(0, [ord("a"), words.mask_id, words.mask_id, ord("b")])
    assert f"a{HIDDEN * 2}b" in console.file.getvalue()
    quiet = Console(file=io.StringIO(), force_terminal=False)
    with Screen(tokenizer.decode, words.mask_id, console=quiet) as screen:
        assert not screen.visible
    assert quiet.file.getvalue() == ""


def test_watching_changes_no_text(monkeypatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    monkeypatch.setattr(command, "Screen", lambda decode, mask_id: Screen(decode, mask_id, console=console))
    request = Request(prompt="ab", tokens=8, mode="masked")
    (shown,), (plain,) = sample_folder(FOLDER, request, screen=True), sample_folder(FOLDER, request)
    assert shown.text == plain.text and console.file.getvalue()
