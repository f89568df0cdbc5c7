"""The registered model answers what lm-evaluation-harness asks, and says what it cannot answer."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from crossover.data.tokenizer import Bpe, Bytes
from crossover.errors import DataError, RecipeError, RunError
from crossover.hub.export import export
from crossover.sampling.picking import Picking
from crossover.scoring.procedures import procedure_of
from crossover.scoring.requests import Piece, score_pieces
from crossover.scoring.writing import split_settings

pytest.importorskip("lm_eval")

WINDOW = 16
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def tokenizer():
    return Bytes().fit([])


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny.model(tokenizer.vocabulary, WINDOW)


@pytest.fixture
def adapter(model, tokenizer):
    from crossover.scoring.harness import CrossoverLM

    def made(name: str, seed: int = 0, draws: int = 3) -> Any:
        return CrossoverLM.of(model, tokenizer, procedure_of(name, draws=draws, positions=32), seed=seed)

    return made


def asked(kind: str, *arguments: Any, task: str = "task", together: bool = False) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(kind, {}, tuple(item), idx=number, metadata=(task, 0 if together else number, 1))  # type: ignore[arg-type]
        for number, item in enumerate(arguments)
    ]


def likely(lm: Any, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    return lm.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)


def test_registering_hides_none_of_the_harness_own_models() -> None:
    from lm_eval.api.registry import get_model, model_registry

    from crossover.scoring.harness import CrossoverLM

    assert get_model("crossover") is CrossoverLM
    assert {"hf", "vllm", "dummy"} <= set(model_registry.keys())


@pytest.mark.parametrize("name", ["ar", "l2r", "nelbo", "nelbo(4)", "order(margin)", "block(8)"])
def test_log_probabilities_are_those_of_the_procedure(adapter, model, tokenizer, name) -> None:
    lm = adapter(name)
    ((log, greedy),) = likely(lm, ("a context", " more"))
    piece = Piece((*tokenizer.encode("a context more").tolist(),), len("a context"))
    (score,), spent = score_pieces(model, [piece], lm.procedure)
    assert log == -score.nats < 0 and greedy is bool(score.greedy)
    assert lm.spent == spent


def test_choices_add_up_to_one(adapter) -> None:
    """All bytes that may follow a context, and the end of the document, share the probability out."""
    answers = likely(adapter("ar"), *[("con", chr(code)) for code in range(33, 127)])
    assert 0 < sum(np.exp(log) for log, _ in answers) < 1
    assert sum(greedy for _, greedy in answers) <= 1


def test_empty_contexts_and_continuations(adapter) -> None:
    lm = adapter("ar")
    (nothing, alone, spaces, joined) = likely(lm, ("abc", ""), ("", "abc"), ("  ", ""), ("ab ", "c"))
    assert nothing == spaces == (0.0, True)
    assert alone[0] == pytest.approx(lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("abc",)), True)[0])
    assert joined[0] == pytest.approx(likely(lm, ("ab", " c"))[0][0]), (
        "white space at a context's end belongs to what follows it"
    )


def test_contexts_that_are_cut_are_counted_and_said(adapter, caplog) -> None:
    lm = adapter("ar")
    with caplog.at_level(logging.WARNING):
        cut, short, split = likely(lm, ("x" * 40 + "abcdef", "0123"), ("abcdef", "0123"), ("abc", "y" * 20))
    assert cut[0] == pytest.approx(likely(lm, ("x" * 6 + "abcdef", "0123"))[0][0])
    assert cut[0] != pytest.approx(short[0])
    assert split[0] == pytest.approx(lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("y" * 20,)), True)[0])
    assert lm.counts["contexts_cut"] == 2 and lm.counts["continuations_split"] == 1
    assert "2 of 3 contexts do not fit into the model's window of 16 tokens" in caplog.text
    assert lm.get_model_info()["contexts_cut"] == 2
    lm.forget()
    assert lm.get_model_info()["contexts_cut"] == 0 and lm.spent.passes == 0


def test_a_bound_has_no_greedy_text_and_says_so(adapter, caplog) -> None:
    lm = adapter("nelbo")
    with caplog.at_level(logging.WARNING):
        lm.loglikelihood(asked("loglikelihood", ("a", "b"), ("a", "c"), together=True), disable_tqdm=True)
        assert "not defined" not in caplog.text, "a choice between endings asks for no greedy text"
        answers = lm.loglikelihood(asked("loglikelihood", ("a", "b"), ("c", "d"), task="lambada"), disable_tqdm=True)
    assert [greedy for _, greedy in answers] == [False, False]
    assert "accuracy of lambada" in caplog.text and "not defined for the bound 'nelbo'" in caplog.text
    assert lm.counts["undefined_greedy"] == 4
    assert lm.get_model_info()["is_greedy"].startswith("not defined")


def test_a_bound_is_seeded_by_its_own_text(adapter) -> None:
    """Neighbours, order and repetition change nothing, another seed does."""
    lm, pairs = adapter("nelbo"), [("ab", " one"), ("ab", " three"), ("a longer one", " x y"), ("ab", " one")]
    together = likely(lm, *pairs)
    assert together[0] == together[3]
    assert [likely(lm, pair)[0][0] for pair in pairs] == pytest.approx([log for log, _ in together], abs=1e-5)
    assert likely(adapter("nelbo", seed=1), pairs[0])[0][0] != pytest.approx(together[0][0])


def test_tokens_that_span_a_border_are_counted(model) -> None:
    from crossover.scoring.harness import CrossoverLM

    reader = Bpe(260).fit(["abab abab abab abab"] * 9)
    lm: Any = CrossoverLM.of(tiny.model(reader.vocabulary, WINDOW), reader, procedure_of("ar", draws=1, positions=1))
    likely(lm, ("x ab", "ab"), ("x ab", " ab"))
    assert lm.get_model_info()["borders_crossed"] == 1


def test_a_rolling_text_is_scored_in_windows(adapter, model, tokenizer) -> None:
    text = "a text of more than one window, é included"
    ids = tokenizer.encode(text).tolist()
    pieces = [Piece(tuple(ids[start : start + WINDOW]), 0) for start in range(0, len(ids), WINDOW)]
    for name in ("ar", "nelbo", "block(4)"):
        lm = adapter(name)
        scores, _ = score_pieces(model, pieces, lm.procedure)
        found = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text,), ("",)), disable_tqdm=True)
        assert found == pytest.approx([-sum(score.nats for score in scores), 0.0], abs=1e-5)


class Ascii:
    """A tokenizer that loses what it does not know."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text if ord(letter) < 128]

    def decode(self, ids: Any) -> str:
        return "".join(chr(number) for number in ids)


def test_a_text_without_tokens_has_no_score(model) -> None:
    from crossover.scoring.harness import CrossoverLM

    lm = CrossoverLM.of(model, Ascii(), procedure_of("ar", draws=1, positions=1))
    with pytest.raises(DataError, match=r"no token of the continuation 'éé'"):
        likely(lm, ("", "éé"))


def test_weights_that_are_no_numbers_give_no_score(tokenizer) -> None:
    from crossover.scoring.harness import CrossoverLM

    broken = tiny.model(tokenizer.vocabulary, WINDOW)
    with torch.no_grad():
        broken.inner.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(RunError, match="no finite score"):
        likely(CrossoverLM.of(broken, tokenizer, procedure_of("ar", draws=1, positions=1)), ("a", "b"))


def written(lm: Any, prompt: str, **settings: Any) -> str:
    return lm.generate_until(asked("generate_until", (prompt, settings)), disable_tqdm=True)[0]


@pytest.mark.parametrize("name", ["ar", "l2r", "nelbo", "order(confidence, 2)", "block(8)", "nelbo(8)"])
def test_text_is_written_under_every_procedure(adapter, name) -> None:
    lm = adapter(name)
    text = written(lm, "abc", max_gen_toks=6, do_sample=True, temperature=1.0)
    assert text == written(adapter(name), "abc", max_gen_toks=6, do_sample=True, temperature=1.0)
    assert lm.spent.passes > 0 and lm.spent.flops > 0
    assert len(text.encode("utf-8", "replace")) <= 6 * 3


def test_the_same_request_again_gets_another_text(adapter) -> None:
    """Tasks that ask for several answers to a prompt send it several times; the answers are draws, not copies."""
    settings = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    requests = asked("generate_until", *[("abc", settings)] * 3)
    texts = adapter("ar").generate_until(requests, disable_tqdm=True)
    assert len(set(texts)) == 3
    assert texts == adapter("ar").generate_until(requests, disable_tqdm=True)


def test_a_greedy_text_is_the_likeliest_at_each_turn(adapter) -> None:
    lm = adapter("ar")
    for prompt in ("abc", "hello", "q"):
        text = written(lm, prompt, max_gen_toks=5, do_sample=False, until=[])
        if text and text.isascii() and not text[0].isspace():
            assert likely(lm, (prompt, text))[0][1]


def test_text_ends_before_a_stop_string(adapter) -> None:
    lm = adapter("ar")
    whole = written(lm, "abc", max_gen_toks=8, do_sample=True, temperature=1.0)
    assert len(whole) > 3
    stop = whole[2]
    ended = written(lm, "abc", max_gen_toks=8, do_sample=True, temperature=1.0, until=["never there", stop])
    assert ended == whole[: whole.index(stop)]


def test_a_long_prompt_leaves_room_for_the_answer(adapter, caplog) -> None:
    lm = adapter("ar")
    with caplog.at_level(logging.WARNING):
        text = written(lm, "z" * 100, max_gen_toks=50, do_sample=True, temperature=1.0)
    assert len(text) <= WINDOW // 2 and lm.counts["prompts_cut"] == 1
    assert "1 prompts were cut from the left" in caplog.text


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, ([], 256, Picking(temperature=0.0))),
        ({"until": "\n", "max_gen_toks": 7}, (["\n"], 7, Picking(temperature=0.0))),
        ({"until": ["a", "b"], "do_sample": False, "temperature": 0.7}, (["a", "b"], 256, Picking(temperature=0.0))),
        ({"temperature": 0.7, "top_p": 0.9}, ([], 256, Picking(temperature=0.7, top_p=0.9))),
        ({"do_sample": True}, ([], 256, Picking(temperature=1.0))),
        ({"temperature": 0.0, "top_p": 0.9}, ([], 256, Picking(temperature=0.0))),
    ],
)
def test_settings_of_generation(settings: Mapping[str, Any], wanted) -> None:
    assert split_settings(settings, Picking) == wanted


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(RecipeError, match="'num_beams' would have no effect"):
        split_settings({"num_beams": 4}, Picking)


def test_a_folder_is_opened_by_name(tmp_path, model, tokenizer) -> None:
    from crossover.scoring.harness import CrossoverLM

    facts = {"modes": ["ar", "nelbo"], "best_mode": "nelbo"}
    export(tmp_path / "model", model.inner.config, dict(model.inner.named_parameters()), tokenizer, facts)
    best = CrossoverLM.create_from_arg_obj({"pretrained": tmp_path / "model", "draws": 5}, {"batch_size": 8})
    info = best.get_model_info()
    assert (info["procedure"], info["draws"], info["modes"]) == ("nelbo", 5, ["ar", "nelbo"])
    assert info["tokenizer_hash"] == tokenizer.hash and len(info["weights_sha256"]) == 64
    other = CrossoverLM.create_from_arg_string(f"pretrained={tmp_path / 'model'},procedure=l2r")
    assert other.get_model_info()["procedure"] == "l2r"
    with pytest.raises(RecipeError, match="no procedure called 'a'"):
        CrossoverLM(tmp_path / "nowhere", "a")
