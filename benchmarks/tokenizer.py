"""Time the byte-level BPE on real text: training it, and turning text into ids and back, by number of pieces.

usage: python benchmarks/tokenizer.py [--repeats 5] [--pieces 1024,4096,32768] [--megabytes 4] [--encode-megabytes 1]
                                      [--threads 1] [--json FILE]

The text is the beginning of the running interpreter's own standard library, as `data.source: stdlib` reads it. Prints
megabytes (1e6 bytes of UTF-8) per second, and for encoding the ratio to the tokenizers library alone on the same texts
(0.9: nine tenths of its rate are left). "raw bytes" is the tokenizer without merges. No matrix product is involved, so
there is no share of one. The library uses several threads only where TOKENIZERS_PARALLELISM allows it; the command line
does not, and neither does this unless --threads is above 1.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers
from table import Table, add_options, finish, load, take_turns

from crossover.data.tokenizer import Tokenizer
from crossover.registry import component_of

DOCUMENT_BYTES = 20_000
Call = Callable[[], object]


def size_of(texts: Iterable[str]) -> int:
    """Count the UTF-8 bytes of texts."""
    return sum(len(text.encode()) for text in texts)


def first(texts: Iterable[str], megabytes: float) -> list[str]:
    """Take texts from the beginning until there are so many megabytes."""
    taken, size = [], 0
    for text in texts:
        taken.append(text)
        size += len(text.encode())
        if size >= 1e6 * megabytes:
            break
    return taken


def library_alone(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Open the same tokenizer with nothing of Crossover around it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def encoding_calls(tokenizer: Tokenizer, texts: list[str]) -> dict[str, Call]:
    """Name the ways of turning text into ids, and back."""
    alone, ids = library_alone(tokenizer), tokenizer.encode_batch(texts)
    return {
        "encode": lambda: [tokenizer.encode(text) for text in texts],
        "encode_batch": lambda: tokenizer.encode_batch(texts),
        "library alone": lambda: alone.encode_batch_fast(texts, add_special_tokens=False),
        "decode": lambda: [tokenizer.decode(numbers) for numbers in ids],
    }


def measure(table: Table, name: str, learnt: list[str], encoded: list[str], repeats: int) -> None:
    """Print the rows of one tokenizer."""
    recipe = component_of("tokenizer", name)
    tokenizer = recipe.fit(learnt)
    calls: dict[str, Call] = {} if name == "bytes" else {"train": lambda: recipe.fit(learnt)}
    turns = take_turns({**calls, **encoding_calls(tokenizer, encoded)}, repeats, warm_up=1)
    tokens, pieces = sum(map(len, tokenizer.encode_batch(encoded))), tokenizer.vocabulary.bos_id
    for call in turns.seconds:
        spent, trains = turns.median(call), call == "train"
        table.add(
            f"{'raw bytes' if name == 'bytes' else name}: {call}",
            pieces,
            size_of(learnt if trains else encoded) / spent / 1e6,
            None if trains else tokens / spent,
            1e3 * spent,
            turns.ratio("library alone", call) if call.startswith("encode") else None,
            turns.mebibytes[call],
        )


def main() -> None:
    """Measure all tokenizers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=5)
    parser.add_argument("--pieces", default="1024,4096,32768", help="sizes of the vocabulary (1024,4096,32768)")
    parser.add_argument("--megabytes", type=float, default=4.0, help="text that is trained on (4)")
    parser.add_argument("--encode-megabytes", type=float, default=1.0, help="the part of it that is encoded (1)")
    options = parser.parse_args()
    # Both are read when the library starts its first job.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if options.threads > 1 else "false"
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)
    documents = component_of("corpus", "stdlib").documents(DOCUMENT_BYTES)
    learnt = first((document.text for document in documents), options.megabytes)
    encoded = first(learnt, options.encode_megabytes)
    print(f"trained on {size_of(learnt) / 1e6:.2f} MB, encoded {size_of(encoded) / 1e6:.2f} MB; {load()}")
    columns = {
        "tokenizer: call": "",
        "pieces": ",",
        "MB/s": ",.2f",
        "tokens/s": ",.0f",
        "ms": ",.0f",
        "of library": ".2f",
    }
    table = Table({**columns, "peak MiB": ",.0f"})
    for name in (*(f"bpe({pieces})" for pieces in options.pieces.split(",")), "bytes"):
        measure(table, name, learnt, encoded, options.repeats)
    finish(options, table)


if __name__ == "__main__":
    main()
