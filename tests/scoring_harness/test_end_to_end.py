"""The same weights get the same results here and as a plain transformers model in lm-evaluation-harness."""

import gzip
import json
import math

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from crossover.hub.adopt import read_llama2c
from crossover.scoring.procedures import procedure_of
from scoring_harness.stories import tokenizer_of

ITEMS, WINDOW = 100, 512


@pytest.fixture(scope="module")
def stories(shared_data):
    folder = shared_data / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("no stories260K in the real data")
    return folder


class Plain:
    """Ids without BOS, which the window brings."""

    def __init__(self, path):
        self.engine = tokenizer_of(path, begin=False)

    def encode(self, text):
        return self.engine.encode(text).ids

    def decode(self, ids):
        return self.engine.decode(list(ids))


def as_transformers(model, path, folder):
    """Save weights and tokenizer as a folder that knows nothing of us."""
    tree = {key: value for key, value in model.inner.config.to_dict().items() if "attn" not in key}
    plain = LlamaForCausalLM(type(model.inner.config)(**tree))
    plain.load_state_dict(model.inner.state_dict())
    plain.save_pretrained(folder)
    begin, end = json.loads(path.read_text("utf-8"))["pieces"][1:3]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(path, begin=True), bos_token=begin, eos_token=end, pad_token=end
    ).save_pretrained(folder)


def that_fit(path, longest_text, tokens):
    """Numbers of the first items that the window of 512 tokens holds whole, so that both sides see the same."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    fitting = [number for number, line in enumerate(lines) if line and tokens(longest_text(json.loads(line))) <= WINDOW]
    return fitting[:ITEMS]


def longest_ending(row):
    return f"{row['activity_label']}: {row['ctx']} {max(row['endings'], key=len)}"


def passage(row):
    return f"{row['context']} {row['continuation']}"


@pytest.fixture
def chosen(shared_data, stories):
    """Items that both sides see whole."""
    reader = Plain(stories / "tok512.json")

    def size(text):
        # The prompt is cleaned of markup, and a choice begins with a space: a few tokens of slack.
        return len(reader.encode(text)) + 8

    swag = that_fit(shared_data / "evals" / "hellaswag" / "hellaswag_val.jsonl.gz", longest_ending, size)
    lambada = that_fit(shared_data / "evals" / "lambada" / "lambada_openai_test.jsonl.gz", passage, size)
    assert len(swag) == len(lambada) == ITEMS
    return {"hellaswag": swag, "lambada_openai": lambada}


def assert_same_results(ours, theirs, task):
    assert ours["n-samples"][task]["effective"] == ITEMS
    mine, plain = ours["results"][task], theirs["results"][task]
    for name in ("acc,none", "acc_norm,none"):
        assert mine.get(name) == plain.get(name)
    for one, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
        assert one["arguments"] == other["arguments"]
        for answer, plain_answer in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
            assert answer[0] == pytest.approx(plain_answer[0], rel=1e-5, abs=1e-4)
            assert answer[1] == plain_answer[1]


# Warnings of other people's packages are not ours to answer for.
@pytest.mark.filterwarnings("ignore")
def test_stories260k_is_scored_as_transformers_scores_it(stories, shared_data, chosen, tmp_path):
    from lm_eval import simple_evaluate

    from crossover.scoring.harness import CrossoverLM
    from crossover.scoring.tasks.definitions import local_tasks

    reader, model = Plain(stories / "tok512.json"), read_llama2c(stories / "stories260K.bin")
    as_transformers(model, stories / "tok512.json", tmp_path / "plain")
    tasks = local_tasks(shared_data / "evals")
    common = {"tasks": list(chosen), "samples": chosen, "task_manager": tasks, "bootstrap_iters": 0}
    ours = simple_evaluate(model=CrossoverLM.of(model, reader, procedure_of("ar", draws=1, positions=1)), **common)
    given = {"pretrained": str(tmp_path / "plain"), "add_bos_token": True, "dtype": "float32"}
    theirs = simple_evaluate(model="hf", model_args=given, batch_size=16, device="cpu", **common)
    assert ours["config"]["contexts_cut"] == 0 and ours["config"]["procedure"] == "ar"
    for task in chosen:
        assert_same_results(ours, theirs, task)
    perplexities = [found["results"]["lambada_openai"]["perplexity,none"] for found in (ours, theirs)]
    assert math.isclose(*perplexities, rel_tol=1e-5)
    assert 0.1 < ours["results"]["hellaswag"]["acc,none"] < 0.5
