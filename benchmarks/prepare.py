"""Prepare a corpus larger than the memory it may take, kill it again and again, and compare what it ends in.

usage: python benchmarks/prepare.py [--gigabytes 2] [--tokenizer bytes] [--near-duplicates 0.8] [--kills 6]
                                    [--document-words 400] [--seed 0] [--folder FOLDER] [--json FILE]

Writes a corpus of so many gigabytes of text (words drawn by Zipf's law and numbers, in JSON lines and in parquet files
of one row group each; 2% of the documents are exact duplicates and 2% differ from an earlier one in a word or two),
runs `crossover prepare` on it as a child process, then once more in another cache where it is killed with SIGKILL at
random instants and started again, and compares the sha256 of every file. Ends with exit code 1 if one differs.

Memory is sampled over the child and all its children. VmHWM is the kernel's own peak of resident memory, with mapped
files in it; "anonymous" is the highest sum of RssAnon that was seen, the memory that cannot be had back without swap.
Neither counts the page cache of files that are read and written: that is the system's, and goes when it is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

WORDS, FILES_BYTES, REMEMBERED = 300_000, 1 << 28, 4096
RECIPE = """
data:
  source: {source}
  tokenizer: {tokenizer}
  near_duplicates: {near}
budget:
  tokens: 1000
"""


def vocabulary(rng: np.random.Generator) -> np.ndarray:
    """Make words of 2 to 11 letters."""
    letters = rng.integers(97, 123, size=(WORDS, 11), dtype=np.uint8)
    lengths = rng.integers(2, 12, size=WORDS)
    return np.array([bytes(row[:length]).decode() for row, length in zip(letters, lengths, strict=True)], dtype=object)


def documents(size_bytes: int, mean_words: int, seed: int) -> Iterator[str]:
    """Make documents until there are so many bytes of them."""
    rng = np.random.default_rng(seed)
    words = vocabulary(rng)
    earlier: list[str] = []
    made = 0
    while made < size_bytes:
        ids = (rng.zipf(1.2, size=1 << 18) - 1) % WORDS
        lengths = np.maximum(20, rng.lognormal(np.log(mean_words) - 0.5, 1.0, size=2 + (2 << 18) // mean_words))
        cuts = np.cumsum(lengths).astype(np.int64)
        for part in np.split(ids, cuts[cuts < len(ids)])[:-1]:
            text = f"{rng.integers(1 << 40)} {' '.join(words[part])}."
            kind = rng.random()
            if earlier and kind < 0.02:
                text = earlier[rng.integers(len(earlier))]
            elif earlier and kind < 0.04:
                text = changed(earlier[rng.integers(len(earlier))], words[rng.integers(WORDS)])
            elif len(earlier) < REMEMBERED:
                earlier.append(text)
            elif kind < 0.1:
                earlier[rng.integers(REMEMBERED)] = text
            made += len(text)
            yield text


def changed(text: str, word: str) -> str:
    """Replace a word in the middle."""
    middle = text.index(" ", len(text) // 2)
    return f"{text[:middle]} {word} {text[middle + 1 :].partition(' ')[2]}"


def write_corpus(folder: Path, options: argparse.Namespace) -> int:
    """Write the documents to files, by turns JSON lines and parquet; returns their bytes of text."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    group: list[str] = []
    held, total, files = 0, 0, 0

    def flush() -> None:
        if files % 2:
            table = pyarrow.table({"text": group})
            pyarrow.parquet.write_table(table, folder / f"{files:04}.parquet", row_group_size=len(group))
        else:
            with open(folder / f"{files:04}.jsonl", "w") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in group)

    for text in documents(int(options.gigabytes * 1e9), options.document_words, options.seed):
        group.append(text)
        held += len(text)
        if held >= FILES_BYTES:
            flush()
            group, held, total, files = [], 0, total + held, files + 1
    if group:
        flush()
    return total + held


@dataclass
class Watched:
    """What was seen of a child and its children."""

    seconds: float = 0.0
    peak_mb: float = 0.0
    anonymous_mb: float = 0.0
    mapped_mb: float = 0.0
    ended: int | None = None
    said: list[str] = field(default_factory=list)


def family(process: int) -> list[int]:
    """List a process and those below it."""
    found = [process]
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += [member for child in path.read_text().split() for member in family(int(child))]
        except OSError:
            continue
    return found


def resident(process: int) -> dict[str, float]:
    """Read a process's resident memory in MB; nothing if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    return {
        key: int(rest.split()[0]) * 1024 / 1e6
        for key, _, rest in (line.partition(":") for line in lines)
        if "kB" in rest
    }


def watch(command: list[str], environment: dict[str, str], log: Path, kill_after: float | None) -> Watched:
    """Run a command, sample its memory, and kill it after so many seconds."""
    seen, start = Watched(), time.monotonic()
    with open(log, "w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        while child.poll() is None:
            now = [resident(member) for member in family(child.pid)]
            seen.peak_mb = max(seen.peak_mb, sum(facts.get("VmHWM", 0.0) for facts in now))
            seen.anonymous_mb = max(seen.anonymous_mb, sum(facts.get("RssAnon", 0.0) for facts in now))
            seen.mapped_mb = max(seen.mapped_mb, sum(facts.get("RssFile", 0.0) for facts in now))
            if kill_after is not None and time.monotonic() - start > kill_after:
                child.send_signal(signal.SIGKILL)
            time.sleep(0.02)
    seen.seconds, seen.ended, seen.said = time.monotonic() - start, child.returncode, log.read_text().splitlines()
    return seen


def shards(cache: Path) -> dict[str, Any]:
    """Read the manifest of the one prepared text in a cache."""
    (manifest,) = cache.glob("text-*/manifest.json")
    return json.loads(manifest.read_text())


def stage(cache: Path) -> str:
    """Say how far an interrupted preparation had noted that it is."""
    found = list(cache.glob(".text-*.work/progress.json"))
    if not found:
        return "not begun" if not list(cache.glob("text-*")) else "done"
    done = json.loads(found[0].read_text())["done"]
    last = [name for name in done if name not in ("begun", "source")][-1:] or ["reading"]
    facts = done.get(last[0], {})
    return f"{last[0]} {facts['documents']:,}" if "documents" in facts else last[0]


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Prepare once without and once with kills."""
    start = time.monotonic()
    size = write_corpus(folder / "text", options)
    print(f"{size / 1e9:.2f} GB of text written in {time.monotonic() - start:.0f} s", flush=True)
    near = "null" if options.near_duplicates is None else options.near_duplicates
    recipe = RECIPE.format(source=folder / "text", tokenizer=options.tokenizer, near=near)
    (folder / "recipe.yaml").write_text(recipe)
    command = [sys.executable, "-m", "crossover", "prepare", str(folder / "recipe.yaml")]
    rows = []

    def run(cache: str, kill_after: float | None = None) -> Watched:
        environment = {**os.environ, "CROSSOVER_CACHE": str(folder / cache)}
        seen = watch(command, environment, folder / "log", kill_after)
        how = "killed" if seen.ended == -signal.SIGKILL else f"exit {seen.ended}"
        row = {"run": cache, "seconds": round(seen.seconds, 1), "peak_mb": round(seen.peak_mb)}
        row |= {"anonymous_mb": round(seen.anonymous_mb), "mapped_mb": round(seen.mapped_mb), "ended": how}
        rows.append(row | {"stage": stage(folder / cache)})
        print("  ".join(f"{value:>14}" for value in rows[-1].values()), flush=True)
        return seen

    print(
        "  ".join(
            f"{name:>14}" for name in ("run", "seconds", "peak_mb", "anonymous_mb", "mapped_mb", "ended", "noted")
        )
    )
    whole = run("whole")
    if whole.ended:
        sys.exit("\n".join(whole.said))
    instants = random.Random(options.seed)
    for _ in range(options.kills):
        if run("killed", instants.uniform(0.02, 2 / (options.kills + 1)) * whole.seconds).ended == 0:
            break
    if rows[-1]["ended"] == "killed":
        last = run("killed")
        if last.ended:
            sys.exit("\n".join(last.said))
    print("\n".join(whole.said))
    return {"text_bytes": size, "rows": rows, "one": shards(folder / "whole"), "other": shards(folder / "killed")}


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--tokenizer", default="bytes")
    parser.add_argument("--near-duplicates", type=float)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--document-words", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; the system's folder for temporary files by default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options)
    one, other = found.pop("one")["files"], found.pop("other")["files"]
    differing = [name for name in one if one[name] != other.get(name)]
    kills = sum(row["ended"] == "killed" for row in found["rows"])
    peak, anonymous = (max(row[key] for row in found["rows"]) for key in ("peak_mb", "anonymous_mb"))
    print(f"{kills} kills; {len(one)} files, {len(differing)} of them differ from the run that was not interrupted")
    size_mb = found["text_bytes"] / 1e6
    print(f"highest resident memory {peak:,} MB, of it anonymous {anonymous:,} MB, for {size_mb:,.0f} MB of text")
    if options.json:
        options.json.write_text(
            json.dumps({**found, "options": {**vars(options), "json": None, "folder": None}}, indent=1)
        )
    sys.exit(1 if differing or len(one) != len(other) else 0)


if __name__ == "__main__":
    main()
