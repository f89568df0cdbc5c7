"""Valid files that fuzzing starts from: small, and of every kind that a reader knows."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from crossover.evidence.files import dumps
from evidence import synthetic
from evidence.recorded import Leaves, Loop

TEXTS = ["the first document, which is short", "a second one\n\nwith two paragraphs and é 漢 \U0001f600", "third " * 30]
RECIPE: dict[str, Any] = {
    "name": "seed",
    "seed": 1,
    "data": {"source": "my_text/", "unique_tokens": "200k", "tokenizer": "bpe(300)", "context": 32},
    "model": {"preset": "250k", "width": 32, "family": "qwen3", "residual_dropout": 0.1},
    "budget": {"tokens": "1M"},
    "mix": {"slice_tokens": 128},
    "training": {"batch_tokens": 512, "optimizer": "adamw(learning_rate=3e-3)", "compile": "off"},
    "controller": {
        "name": "switch",
        "at_epochs": 4,
        "before": "autoregressive",
        "after": {"masked": 0.75, "block(16)": 0.25},
    },
    "scoring": {"every_tokens": 6000, "test_draws": 2},
    "sinks": ["tensorboard"],
}
OVERRIDES = (
    "training.batch_tokens=1024", "data.source=other.txt", "model.width=64", "budget.flops=1e12", "seed=7",
    "controller=constant(block(16))", "controller.mix={masked: 0.5, autoregressive: 0.5}", "controller=switch(4)",
    "training.optimizer=muon", "training.learning_rate.decay_fraction=0.3", "sinks=[tensorboard, wandb]",
    "data.tokenizer.vocabulary=512", "controller=online(floor=0.1)", "imports=[os]", "scoring.weights=ema",
    "training.compile=on",
)  # fmt: skip
STUDY: dict[str, Any] = {
    "name": "pair",
    "recipe": "base.yaml",
    "vary": "controller",
    "arms": {
        "ar": {"controller": "constant(autoregressive)"},
        "masked": {"controller": "constant(masked)", "set": {"training.optimizer.learning_rate": 1e-3}},
    },
    "seeds": [0, 1],
    "budget": {"tokens": 1e6},
    "budgets": [2e5, 4e5],
    "tunable": ["training.optimizer.learning_rate"],
    "tune": None,
    "set": {"training.batch_tokens": 1024},
    "jobs": 2,
}
CSV = (
    "# published\nstep,tokens,flops,loss,arm,seed,epochs,bits_per_byte,standard_error\n"
    + "".join(f"{i},{i * 1000},{i * 1e9},{4 - i / 10},ar,0,{i / 2},{2 - i / 20},0.01\n" for i in range(6))
    + "".join(f"{i},{i * 1000},{i * 1e9},{5 - i / 5},masked,0,{i / 2},{2 - i / 9},0.01\n" for i in range(6))
)
POINTS = "parameters,unique_tokens,tokens,loss_nats,family,seed,group\n" + "".join(
    f"{1e6 * size},{1e7},{1e7 * epochs},{4 - size / 10 - epochs / 50},autoregressive,0,run-{size}\n"
    for size in (1, 2)
    for epochs in (1, 4)
)
PROGRESS = {"step": 3, "budget_fraction": 0.1, "loss_nats": 3.2, "mix": {"masked": 1.0}, "seconds_left": 20.5,
            "tokens_per_second": 1000.0, "epochs": 0.3}  # fmt: skip


def written_twice(tree: Any) -> list[bytes]:
    """Write a tree as YAML in lines, and as JSON, which is YAML too."""
    return [yaml.safe_dump(tree, sort_keys=False).encode(), dumps(tree).encode()]


def run_folder(folder: Path) -> Path:
    """Write a finished run whose gear changed once, with steps and signals."""
    shutil.rmtree(folder, ignore_errors=True)
    modes = {"ar": lambda x: 3.0 - x, "nelbo": lambda x: 4.0 - 2 * x}
    synthetic.DOCUMENTS, documents = 4, synthetic.DOCUMENTS
    try:
        synthetic.write_run(folder, modes=modes, handover_epoch=8.0, controller=synthetic.AUTOREGRESSIVE)
    finally:
        synthetic.DOCUMENTS = documents
    rows = [{"step": i, "data_tokens": 100 * i, "loss_nats": 3.0, "grad_norm": 1.0} for i in range(1, 9)]
    (folder / "steps.jsonl").write_text("".join(dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "progress.json").write_text(dumps(PROGRESS), "utf-8")
    return folder


def recorded_run(folder: Path) -> Path:
    """Write a run whose controller was asked, so that it can be replayed."""
    shutil.rmtree(folder, ignore_errors=True)
    Loop(folder, Leaves(2.0), [3.0, 2.5, 1.5, 1.2, 2.2])
    return folder


def parquet(**options: Any) -> bytes:
    """Write texts as a parquet file."""
    import pyarrow as arrow
    from pyarrow import parquet as library

    content = io.BytesIO()
    table = arrow.table({"text": TEXTS * 3, "number": list(range(9))})
    library.write_table(table, content, **options)
    return content.getvalue()


def json_lines() -> bytes:
    """Write texts as JSON lines."""
    return "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS)).encode()


def npy(array: np.ndarray) -> bytes:
    """Write an array as an .npy file."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def llama2c() -> bytes:
    """Write a llama2.c model of two layers."""
    width, mlp, depth, heads, kv_heads, vocabulary, context = 8, 16, 2, 2, 1, 12, 4
    floats = vocabulary * width + depth * (2 * width + 2 * width * width + 2 * width * 4 + 3 * width * mlp) + width
    header = struct.pack("7i", width, mlp, depth, heads, kv_heads, vocabulary, context)
    return header + np.full(floats + context * 4, 0.01, "<f4").tobytes()


def tokenizers() -> list[bytes]:
    """Write tokenizer.json files of several families."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    from crossover.data.tokenizer import Bytes

    pieces: list[tuple[str, float]] = [("<unk>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("e", -3.0), ("t", -3.5)]
    sentence = Tokenizer(models.Unigram(pieces, unk_id=0))  # pyright: ignore[reportCallIssue]
    sentence.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    sentence.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "first": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split("a+", "isolated")
    pairs = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")], byte_fallback=True))
    pairs.pre_tokenizer = pre_tokenizers.Metaspace()
    return [Bytes().fit([])._json.encode(), *(engine.to_str().encode() for engine in (sentence, words, pairs))]


def zstandard(content: bytes) -> bytes:
    """Compress by zstandard."""
    import zstandard as library

    return library.compress(content)


CORPORA: dict[str, tuple[str, Callable[[], list[bytes]]]] = {
    ".txt": ("text", lambda: ["\n\n".join(TEXTS).encode(), "\ufeffé漢 text".encode() * 9]),
    ".py": ("text", lambda: [b"def one():\n    return 1\n\n\n# two\nclass Two:\n    pass\n"]),
    ".jsonl": ("rows", lambda: [json_lines()]),
    ".txt.gz": ("compressed text", lambda: [gzip.compress("\n\n".join(TEXTS).encode(), mtime=0)]),
    ".jsonl.gz": ("compressed rows", lambda: [gzip.compress(json_lines(), mtime=0)]),
    ".jsonl.zst": ("compressed rows", lambda: [zstandard(json_lines())]),
    ".parquet": ("bytes", lambda: [parquet(compression=kind) for kind in ("snappy", "zstd", "gzip", "none")]),
}
