"""A judge scores text as its model does: by its own tokenizer, from its own begin of text, running no foreign code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import tiny
from crossover.data.tokenizer import Bpe, Bytes, Tokenizer
from crossover.errors import CheckpointError
from crossover.hub.adopt import read_llama2c
from crossover.hub.export import export
from crossover.model.backbone import Backbone, build
from crossover.records import Pattern
from crossover.sampling.judges import Judge, open_embedding, open_judge
from crossover.sampling.quality import quality

CONTEXT = 24
TEXTS = ["a café", "x" * 60, "<|bos|> and <|eos|>\n"]
BYTES = Bytes().fit(())


def ours(
    folder: Path, *, modes: tuple[str, ...] = ("ar", "nelbo"), change: Callable[[Backbone], None] | None = None
) -> Path:
    model = build(tiny.shape(rows=BYTES.vocabulary.size), BYTES.vocabulary, context=CONTEXT, seed=0)
    if change is not None:
        change(model)
    facts = {"modes": list(modes), "best_mode": modes[0]}
    export(folder, model.inner.config, dict(model.inner.named_parameters()), BYTES, facts)
    return folder


def silence(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


def theirs(folder: Path, tokenizer: Tokenizer = BYTES, *, flat: bool = False, kind: str = "llama") -> Any:
    size = tokenizer.vocabulary.size
    torch.manual_seed(0)
    if kind == "llama":
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                        num_attention_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.5)
        )  # fmt: skip
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT))
    if flat:
        silence(model)
    model.eval().save_pretrained(folder)
    tokenizer.save(folder)
    return model


def samples() -> list[tuple[list[int], str]]:
    return [(BYTES.encode(text).tolist(), text) for text in TEXTS]


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tmp_path: Path) -> None:
    """Ours never predicts its mask; another model's vocabulary is all of its rows."""
    mine = quality(samples(), open_judge(ours(tmp_path / "a" / "model", change=silence)))
    assert mine.perplexity.value == pytest.approx(BYTES.vocabulary.predictable, rel=1e-5)
    theirs(tmp_path / "b", flat=True)
    found = quality(samples(), open_judge(tmp_path / "b"))
    assert found.perplexity.value == pytest.approx(BYTES.vocabulary.size, rel=1e-5)
    assert found.bits_per_byte.value == pytest.approx(math.log2(BYTES.vocabulary.size), rel=1e-5)


def test_a_run_judges_by_the_chain_rule(tmp_path: Path) -> None:
    """Summed by hand from the exported weights, loaded by transformers, window by window."""
    judge = open_judge(ours(tmp_path / "arm" / "run" / "model").parent)
    assert judge.name.startswith("arm/run (sha256 ") and judge.window_tokens == CONTEXT
    model = LlamaForCausalLM.from_pretrained(tmp_path / "arm" / "run" / "model")
    vocabulary = BYTES.vocabulary
    total = tokens = 0.0
    for text in TEXTS:
        ids = BYTES.encode(text).tolist()
        for start in range(0, len(ids), CONTEXT):
            piece = ids[start : start + CONTEXT]
            with torch.no_grad():
                logits = model(torch.tensor([[vocabulary.bos_id, *piece[:-1]]])).logits[0, :, : vocabulary.predictable]
            total -= float(torch.log_softmax(logits.double(), -1)[torch.arange(len(piece)), piece].sum())
            tokens += len(piece)
    found = quality(samples(), judge)
    assert found.loss_nats.value == pytest.approx(total / tokens, abs=1e-5)
    assert (found.judge_tokens, found.cut_samples, found.changed_samples) == (tokens, 1, 0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_hugging_face_model_judges_with_its_own_tokenizer(tmp_path: Path, kind: str) -> None:
    tokenizer = Bpe(300).fit(["a cafe and another cafe", "xxxx xxxx"] * 20)
    model = theirs(tmp_path / kind, tokenizer, kind=kind)
    judge = open_judge(tmp_path / kind)
    assert judge.window_tokens == CONTEXT - 1, "the begin of text takes a position"
    for text in TEXTS:
        ids = judge.encode(text)
        assert ids == tokenizer.encode(text).tolist(), "what spells a special token is text"
        assert judge.decode(ids) == text
    ids = judge.encode(TEXTS[0])
    with torch.no_grad():
        logits = model(torch.tensor([[tokenizer.vocabulary.bos_id, *ids]])).logits[0, :-1]
    wanted = -torch.log_softmax(logits, -1)[torch.arange(len(ids)), ids]
    np.testing.assert_allclose(judge.nats(ids), wanted.numpy(), atol=1e-5)
    # Fewer tokens than the sampler's bytes, and the bytes are the text's.
    found = quality(samples(), judge)
    assert found.judge_tokens == sum(len(tokenizer.encode(text)) for text in TEXTS) < sum(len(t) for t in TEXTS)
    assert found.bits_per_byte.value == pytest.approx(
        found.loss_nats.value * found.judge_tokens / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    )


def edit(path: Path, **changes: Any) -> None:
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**tree, **changes}.items() if value is not None}))


def test_what_cannot_judge_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no model folder"):
        open_judge(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no mode `ar`, only nelbo, l2r"):
        open_judge(ours(tmp_path / "masked", modes=("nelbo", "l2r")))

    def spoil(model: Backbone) -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)

    with pytest.raises(CheckpointError, match="its scores are not finite"):
        open_judge(ours(tmp_path / "nan", change=spoil))
    theirs(tmp_path / "code")
    edit(tmp_path / "code" / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(CheckpointError, match="code of its own, which is never run"):
        open_judge(tmp_path / "code")
    theirs(tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be opened as a model"):
        open_judge(tmp_path / "pickle")
    theirs(tmp_path / "endless")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(tmp_path / "endless" / name, bos_token=None, eos_token=None, pad_token=None)
    with pytest.raises(CheckpointError, match="declares no token that begins or ends a text"):
        open_judge(tmp_path / "endless")


def encoder(folder: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=BYTES.vocabulary.size, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=CONTEXT, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BYTES.save(folder)


def test_an_encoder_embeds_and_does_not_judge(tmp_path: Path) -> None:
    encoder(tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"lacks \d+ weights that it needs here"):
        open_judge(tmp_path / "bert")
    embedding = open_embedding(tmp_path / "bert")
    points = embedding.embed(TEXTS)
    assert points.shape == (3, 16) and np.isfinite(points).all()
    np.testing.assert_array_equal(points[1], embedding.embed(TEXTS[1:2])[0])
    np.testing.assert_array_equal(points[1], embedding.embed(["x" * CONTEXT])[0])
    assert np.abs(points[0] - points[2]).max() > 0.01


def test_a_model_that_sees_the_future_does_not_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs(tmp_path / "leaky")
    plain = LlamaForCausalLM.forward

    def forward(self: Any, ids: Any) -> Any:
        return plain(self, ids.flip(-1).cumsum(-1).flip(-1) % 256)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(CheckpointError, match="it sees the tokens that it should predict"):
        open_judge(tmp_path / "leaky")


def test_real_weights_judge_as_their_reference_says(shared_data: Path) -> None:
    """stories260K: mean nats that were computed in float64 numpy, for its own opening, a story and a news sentence."""
    folder = shared_data / "models" / "stories260K"
    model = read_llama2c(folder / "stories260K.bin")
    cases = {case["text"]: case for case in json.loads((folder / "reference.json").read_text())["nll_checks"]}
    ids = {text: case["ids"][1:] for text, case in cases.items()}

    @torch.inference_mode()
    def nats(ids: list[int]) -> np.ndarray:
        row = torch.tensor([1, *ids])
        plan = model.plan(Pattern("causal"), len(ids))
        return model.nll(row[None, :-1], torch.arange(len(ids))[None], plan, None, row[1:]).double().numpy()

    judge = Judge("stories260K", 511, lambda text: ids[text], lambda ids: "", nats)
    found = quality([(ids[text], text) for text in cases], judge)
    total = sum(case["mean_nll_nats"] * len(ids[text]) for text, case in cases.items())
    assert found.loss_nats.value == pytest.approx(total / sum(map(len, ids.values())), abs=1e-5)
    each = [quality([(ids[text], text)] * 2, judge).perplexity.value for text in cases]
    assert each == sorted(each) and each[0] < 1.3 < 50 < each[-1]
