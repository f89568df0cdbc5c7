"""A tiny run as the subject of faults: its text, its recipe, the command, and what it leaves when nothing happens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

BENCHMARKS = Path(__file__).resolve().parents[1]
WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
STEPS = 24
PATIENCE_SECONDS = 120.0
# Everything that a resume has to restore is in use: averages, dropout, a mix that moves, two modes that are scored.
RECIPE: dict[str, Any] = {
    "name": "subject",
    "data": {"source": "text.jsonl", "unique_tokens": 4000, "tokenizer": "bpe(300)", "context": 32},
    "model": {"preset": "250k", "width": 32, "depth": 2, "mlp_width": 64, "head_width": 16, "heads": 2,
              "residual_dropout": 0.1},
    "budget": {"tokens": STEPS * 256},
    "mix": {"slice_tokens": 64, "micro_batch_slices": 2},
    "training": {"batch_tokens": 256, "threads": 1, "precision": "float32", "compile": "off", "ema_decay": 0.9,
                 "checkpoint_every_tokens": 1000, "optimizer": "adamw(learning_rate=3e-3)",
                 "learning_rate": "wsd(warmup_tokens=1000, decay_fraction=0.2)"},
    "controller": {"name": "ramp", "from_epochs": 0.2, "to_epochs": 1, "before": "autoregressive",
                   "after": {"autoregressive": 0.5, "masked": 0.5}},
    "scoring": {"every_tokens": 2000, "dev_windows": 4, "dev_draws": 2, "dev_positions": 0, "test_windows": 4,
                "test_draws": 2, "test_positions": 2},
}  # fmt: skip


@dataclass
class Started:
    """A command that was started.

    Args:
        subject: Who started it.
        pid: Its process.
        log: What it says.
    """

    subject: Subject
    pid: int
    log: Path

    def send(self, number: int) -> bool:
        """Send a signal; says whether there was a process to hear it."""
        # The server has not waited for it, so its number cannot be another's.
        if self.poll() is not None:
            return False
        os.kill(self.pid, number)
        return True

    def poll(self) -> int | None:
        """Give its exit code, or None while it runs."""
        if self.pid not in self.subject.ended:
            code = self.subject.ask(do="poll", pid=self.pid)["code"]
            if code is None:
                return None
            self.subject.ended[self.pid] = code
        return self.subject.ended[self.pid]

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end; one that hangs is killed, which is an error."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, 9)
                raise AssertionError(f"it hung for {seconds:.0f} s:\n{self.said()}")
            time.sleep(0.005)
        return code

    def said(self) -> str:
        """Read what it has said so far."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


class Subject:
    """A folder with a text, a recipe, a cache and runs, and a server that starts commands in it.

    Args:
        folder: An empty or new folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.text, self.recipe = self.folder / "text.jsonl", self.folder / "recipe.yaml"
        self.cache = self.folder / "cache"
        self.ended: dict[int, int] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_text()
        self.write_recipe()
        paths = os.pathsep.join([str(BENCHMARKS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        env = {**os.environ, **self.environment(), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "injected.server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self._answer()

    def __enter__(self) -> Self:
        """Use it in a `with` block: its server ends with it."""
        return self

    def __exit__(self, *what: object) -> None:
        """End the server."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(timeout=60)

    def write_text(self, changed: str = "alpha") -> None:
        """Write documents whose words follow a rule; another first word makes another text of the same length."""
        words = (changed, *WORDS[1:])
        rows = [" ".join(words[(i * i + j * 7 + i * j) % 8] for j in range(100)) + f" {i}." for i in range(60)]
        self.text.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
        # Text that comes back has its old time of change, as from a backup.
        os.utime(self.text, (10**9, 10**9 + (changed != "alpha")))

    def write_recipe(self, **changes: Any) -> None:
        """Write the recipe; `training__clip_norm=2` changes a setting."""
        tree = json.loads(json.dumps(RECIPE))
        for key, value in changes.items():
            section, _, name = key.partition("__")
            tree[section] = {**tree[section], name: value} if name else value
        self.recipe.write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")

    def environment(self, cache: Path | None = None) -> dict[str, str]:
        """Give what a command needs to know."""
        return {"CROSSOVER_CACHE": str(cache or self.cache), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask the server."""
        assert self._server.stdin is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise SystemExit("the process that starts runs has ended; what it said stands above")
        return json.loads(line)

    def start(self, *arguments: object, fault: Mapping[str, Any] | None = None, cache: Path | None = None) -> Started:
        """Start a command, with a cache of its own if one is given."""
        log = self.folder / f"said-{time.monotonic_ns()}.txt"
        given = {"arguments": [str(item) for item in arguments], "folder": str(self.folder), "log": str(log)}
        number = self.ask(do="start", environment=self.environment(cache), fault=dict(fault or {}), **given)["pid"]
        # Numbers of processes come back.
        self.ended.pop(number, None)
        return Started(self, number, log)

    def train(self, run: Path, *overrides: object, **how: Any) -> Started:
        """Start `crossover train` into a run folder; `fault` and `cache` as in `start`."""
        return self.start("train", self.recipe, *overrides, "--run-dir", run, **how)

    def finish(self, run: Path, *overrides: object, **how: Any) -> str:
        """Train to the end, which must be reached; gives what was said."""
        started = self.train(run, *overrides, **how)
        code, status = started.wait(), read(run / "status.json").get("state")
        assert (code, status) == (0, "finished"), f"ended with {code}, status {status}:\n{started.said()[-1500:]}"
        return started.said()

    def refused(self, run: Path, *overrides: object, **how: Any) -> str:
        """Train, which must be refused in one message with exit code 2; gives the message."""
        started = self.train(run, *overrides, **how)
        code, said = started.wait(), started.said()
        assert code == 2 and "error: " in said and "Traceback" not in said, f"ended with {code}:\n{said[-1500:]}"
        return said.partition("error: ")[2]

    def copy(self, run: Path, name: str) -> Path:
        """Copy a run folder, or the cache, to a new name."""
        return Path(shutil.copytree(run, self.folder / name, symlinks=True))


def read(path: Path) -> dict[str, Any]:
    """Read a JSON file; a missing one is empty."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
