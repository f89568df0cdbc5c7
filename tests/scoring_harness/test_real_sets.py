"""A few items of the real sets, scored from left to right and as a masked diffusion model, with no network."""

import gzip
import json
import math
import re

import numpy as np
import pytest
import torch

import tiny
from crossover.data.tokenizer import Bpe
from crossover.hub.export import export
from crossover.records import Pattern
from crossover.scoring.tasks.evaluate import evaluate

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

WINDOW, ITEMS = 128, 3
TASKS = ("hellaswag", "arc_easy", "lambada", "mmlu_anatomy", "blimp_causative")


def lines(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[:400] if line]


@pytest.fixture(scope="module")
def evals(shared_data):
    return shared_data / "evals"


@pytest.fixture(scope="module")
def swag(evals):
    return lines(evals / "hellaswag" / "hellaswag_val.jsonl.gz")


@pytest.fixture(scope="module")
def parts(swag):
    # An answer's letter is one token, as it is for tokenizers that have seen much text.
    tokenizer = Bpe(512).fit([*(row["ctx"] for row in swag), *["Answer: A B C D"] * 400])
    return tiny.model(tokenizer.vocabulary, WINDOW), tokenizer


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    model, tokenizer = parts
    made = tmp_path_factory.mktemp("models") / "model"
    facts = {"modes": ["ar", "nelbo"], "best_mode": "ar"}
    export(made, model.inner.config, dict(model.inner.named_parameters()), tokenizer, facts)
    return made


@pytest.fixture(scope="module")
def scores(folder, evals):
    return {
        (name, procedure): score
        for procedure in ("ar", "nelbo")
        for name, score in zip(
            TASKS, evaluate(folder, TASKS, procedure, evals=evals, limit=ITEMS, draws=2), strict=True
        )
    }


def test_every_set_has_its_measures_in_both_procedures(scores) -> None:
    for (name, procedure), score in scores.items():
        assert score.items == ITEMS and score.procedure == procedure
        wanted = {"bits_per_byte"}
        if name != "lambada" or procedure == "ar":
            wanted.add("acc")
        if name in ("hellaswag", "arc_easy"):
            wanted.add("acc_norm")
        if name != "lambada":
            wanted.add("acc_bytes")
        assert set(score.measures) == wanted
        assert all(math.isfinite(item.value) and item.standard_error is not None for item in score.measures.values())
        assert all(0 <= score.measures[key].value <= 1 for key in wanted - {"bits_per_byte"})
        assert json.loads(json.dumps(score.record())) == score.record()


def test_what_a_set_costs(scores) -> None:
    """Four letters behind one question are one pass, and one hidden token needs one draw."""
    assert scores["mmlu_anatomy", "ar"].passes == scores["mmlu_anatomy", "nelbo"].passes == ITEMS
    assert scores["hellaswag", "ar"].passes == 4 * ITEMS
    assert scores["hellaswag", "nelbo"].passes == 2 * 4 * ITEMS
    assert scores["blimp_causative", "ar"].passes == 2 * ITEMS


def cleaned(text):
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def test_hellaswag_is_what_it_is_by_hand(scores, parts, swag) -> None:
    """The rule of the set's paper and the chain rule, written out."""
    model, tokenizer = parts
    right, right_by_length, bits, size = [], [], 0.0, 0
    for row in swag[:ITEMS]:
        query = cleaned(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}").rstrip()
        endings = [cleaned(ending) for ending in row["endings"]]
        nats = [nats_of(model, tokenizer, query, f" {ending}") for ending in endings]
        right.append(np.argmin(nats) == row["label"])
        lengths = [len(ending) for ending in endings]
        right_by_length.append(np.argmin(np.divide(nats, lengths)) == row["label"])
        bits += nats[row["label"]] / math.log(2)
        size += len(f" {endings[row['label']]}".encode())
    found = scores["hellaswag", "ar"].measures
    assert found["acc"].value == pytest.approx(np.mean(right))
    assert found["acc_norm"].value == pytest.approx(np.mean(right_by_length))
    assert found["bits_per_byte"].value == pytest.approx(bits / size, abs=1e-5)


def nats_of(model, tokenizer, context, ending) -> float:
    ids = tokenizer.encode(context + ending).tolist()
    scored = len(ids) - len(tokenizer.encode(context))
    ids = ids[-WINDOW:]
    inputs = torch.tensor([[model.vocabulary.bos_id, *ids]])
    with torch.no_grad():
        plan = model.plan(Pattern("causal"), inputs.shape[1])
        logits = model.logits(model.states(inputs, torch.arange(inputs.shape[1])[None], plan))[0]
    logs = torch.log_softmax(logits.double(), -1)
    return -sum(float(logs[place, ids[place]]) for place in range(len(ids) - scored, len(ids)))
