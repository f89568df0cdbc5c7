"""The model `crossover` of lm-evaluation-harness: a model folder, scored under a declared procedure.

Import this module before `lm_eval.simple_evaluate(model="crossover", model_args={"pretrained": "runs/x/model",
"procedure": "ar"})`. Its model_args are a mapping: in a string, the comma of `order(confidence, 2)` would end the name.
Tasks that read local files come from `crossover.scoring.tasks.definitions.local_tasks`.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

# Before anything is registered: the table of lm-evaluation-harness's own models is filled when it is still empty only.
import lm_eval.models  # noqa: F401
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from crossover import __version__
from crossover.errors import DataError, RecipeError
from crossover.hub.adopt import open_model
from crossover.model.backbone import Backbone
from crossover.sampling.picking import Picking
from crossover.sampling.reading import Reading
from crossover.scoring.pairs import encode_pair, shared_draws
from crossover.scoring.procedures import Procedure, procedure_of
from crossover.scoring.requests import (
    Pieces,
    Scored,
    Spent,
    continuation_pieces,
    score_pieces,
    text_pieces,
)
from crossover.scoring.writing import sampler_of, split_settings
from crossover.streams import torch_seed

LOG = logging.getLogger(__name__)


class Reader(Protocol):
    """What is asked of a tokenizer."""

    def encode(self, text: str) -> Any:
        """Turn text into ids without special ones."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Turn ids back into text."""
        ...


class CrossoverLM(TemplateLM):
    """A model of ours as lm-evaluation-harness asks for it.

    Every window is BOS and the model's T tokens. A context that is too long is cut from the left, which is counted and
    said. A request's score depends on its own text, the procedure and the seed, not on batches, order or other
    documents; the choices of one document share their random numbers. `is_greedy` says whether each token of a
    continuation is the likeliest at its turn. It is not defined for a bound: it is False, a warning says so, and
    `get_model_info` labels the results.

    Args:
        pretrained: A model folder that a run left.
        procedure: "ar", "l2r", "nelbo", "nelbo(16)", "order(confidence)", "block(16)" and so on; "best" is the mode
            that scored best on dev.
        draws: Mask draws per request for a bound.
        positions: Positions per request for `l2r`; continuations that are no longer are scored whole.
        seed: Seed of draws, orders and generation.
        precision: "float32" or "bfloat16" compute.
        device: Where the model runs, the CPU by default.
        batch_size: Taken because the harness hands it over; scores do not depend on it, and passes are filled by size.
        max_batch_size: The same.

    Raises:
        RecipeError: There is no such procedure.
        CheckpointError: The folder holds no model of ours.
    """

    def __init__(
        self,
        pretrained: str | Path,
        procedure: str = "best",
        draws: int = 128,
        positions: int = 64,
        seed: int = 0,
        precision: str = "float32",
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        if procedure != "best":
            # A mistyped name should not wait for the weights.
            procedure_of(procedure, draws=draws, positions=positions)
        folder = Path(pretrained)
        model, tokenizer, facts = open_model(folder)
        name = str(facts["best_mode"]) if procedure == "best" else procedure
        stated = {
            "modes": list(facts["modes"]),
            "tokenizer_hash": tokenizer.hash,
            "weights_sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        }
        chosen = procedure_of(name, draws=draws, positions=positions)
        self._set(model if device is None else model.to(device), tokenizer, chosen, seed, precision, stated)

    @classmethod
    def of(
        cls,
        model: Backbone,
        tokenizer: Reader,
        procedure: Procedure,
        *,
        seed: int = 0,
        precision: str = "float32",
        stated: Mapping[str, Any] | None = None,
    ) -> CrossoverLM:
        """Make one of a model that is in memory.

        Args:
            model: The model.
            tokenizer: Its tokenizer.
            procedure: How it is scored.
            seed: Seed of draws, orders and generation.
            precision: "float32" or "bfloat16" compute.
            stated: What the card should say of the weights and the tokenizer.

        Returns:
            The model as the harness asks for it.
        """
        made = cls.__new__(cls)
        made._set(model, tokenizer, procedure, seed, precision, stated or {})
        return made

    def _set(
        self,
        model: Backbone,
        reader: Reader,
        procedure: Procedure,
        seed: int,
        precision: str,
        stated: Mapping[str, Any],
    ) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise RecipeError(f"precision must be float32 or bfloat16, not '{precision}'")
        self.model, self.reader, self.procedure = model.eval(), reader, procedure
        self.seed, self.precision, self._stated = seed, precision, dict(stated)
        self._device = model.device
        self.window_tokens = model.context
        self.forget()

    def forget(self) -> None:
        """Begin to count anew: what was spent, and what did not fit."""
        self.spent, self.counts = Spent(), Counter[str]()

    @property
    def eot_token_id(self) -> int:
        """Id of the end of a document."""
        return self.model.vocabulary.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Id of BOS, which stands before every window."""
        return self.model.vocabulary.bos_id

    @property
    def max_length(self) -> int:
        """Most tokens of context and continuation together, BOS not among them."""
        return self.window_tokens

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's hash, which tells caches of requests apart."""
        return str(self._stated.get("tokenizer_hash", type(self.reader).__name__))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Turn text into ids; what looks like a special piece is text, and BOS comes with the window."""
        return [int(number) for number in self.reader.encode(string)]

    def get_model_info(self) -> dict[str, Any]:
        """Say how scores came about; lm-evaluation-harness puts it beside its results."""
        procedure = self.procedure
        fields = ("draws", "positions", "block", "policy", "tokens_per_step")
        greedy = "not defined for a bound; False stands for it" if not procedure.exact else "likeliest at each turn"
        return {
            **self._stated,
            "procedure": procedure.name,
            "exact": procedure.exact,
            **{name: getattr(procedure, name) for name in fields if hasattr(procedure, name)},
            "is_greedy": greedy,
            "context": self.window_tokens,
            "seed": self.seed,
            "precision": self.precision,
            "crossover": __version__,
            "lm_eval": version("lm_eval"),
            "requests": self.counts["requests"],
            "contexts_cut": self.counts["contexts_cut"],
            "continuations_split": self.counts["continuations_split"],
            "borders_crossed": self.counts["borders_crossed"],
        }

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations of contexts.

        Args:
            requests: Their arguments are (context, continuation); either may be empty. An empty continuation has
                probability 1.
            disable_tqdm: Shows no progress.

        Returns:
            Log probability in nats and `is_greedy` of each.
        """
        asked = [_pair(request.args) for request in requests]
        made = [encode_pair(self.tok_encode, *pair) for pair in asked]
        self.counts["borders_crossed"] += sum(not item.aligned for item in made)
        pairs = [(pair, item.context, item.continuation) for pair, item in zip(asked, made, strict=True)]
        self._warn_of_greedy(requests)
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm, draws=shared_draws(requests))

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        draws: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        windows = []
        names = [""] * len(requests) if draws is None else draws
        for ((_, text), context, continuation), name in zip(requests, names, strict=True):
            if text and not continuation:
                raise DataError(f"the tokenizer makes no token of the continuation {text!r}, so it has no score")
            windows.append(continuation_pieces(context, continuation, self.window_tokens, draws=name))
        self._count(windows)
        scores = self._score(windows, disable_tqdm)
        self.counts["undefined_greedy"] += sum(score.greedy is None for score in scores)
        return [(-score.nats, bool(score.greedy)) for score in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts in disjoint windows of BOS and T tokens, as held-out text is scored.

        For a bound the sum over windows is a bound on the same sum, so it is comparable between procedures.

        Args:
            requests: Their arguments are (text,).
            disable_tqdm: Shows no progress.

        Returns:
            Log probability of each text in nats, or a lower bound on it.
        """
        windows = [text_pieces(self.tok_encode(str(request.args[0])), self.window_tokens) for request in requests]
        self.counts["requests"] += len(windows)
        return [-score.nats for score in self._score(windows, disable_tqdm)]

    def _count(self, windows: Sequence[Pieces]) -> None:
        cut = sum(item.cut_tokens > 0 for item in windows)
        split = sum(len(item.pieces) > 1 for item in windows)
        self.counts.update(requests=len(windows), contexts_cut=cut, continuations_split=split)
        if cut or split:
            LOG.warning(
                "%d of %d contexts do not fit into the model's window of %d tokens and were cut from the left; "
                "%d continuations are longer than it and were scored in disjoint windows without their context",
                cut,
                len(windows),
                self.window_tokens,
                split,
            )

    def _warn_of_greedy(self, requests: Sequence[Instance]) -> None:
        # The choices of one document come as several requests; a document with one is asked for a greedy match.
        alone = Counter((request.task_name, request.doc_id) for request in requests)
        tasks = sorted({str(task) for (task, _), count in alone.items() if count == 1 and task is not None})
        if tasks and not self.procedure.exact:
            LOG.warning(
                "accuracy of %s asks whether a text is the likeliest one, which is not defined for the bound '%s': the "
                "accuracy that follows is 0 and means nothing; take an exact procedure, such as order(confidence)",
                ", ".join(tasks),
                self.procedure.name,
            )

    def _score(self, windows: Sequence[Pieces], disable_tqdm: bool) -> list[Scored]:
        pieces = [piece for item in windows for piece in item.pieces]
        with tqdm(total=len(set(pieces)), desc=f"scoring, {self.procedure.name}", disable=disable_tqdm or None) as bar:
            scores, spent = score_pieces(
                self.model, pieces, self.procedure, seed=self.seed, precision=self.precision, done=bar.update
            )
        self.spent += spent
        left = iter(scores)
        return [_joined([next(left) for _ in item.pieces]) for item in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Write continuations, each up to a stop string.

        At most `max_gen_toks` tokens (256 by default) are drawn, and no more than the prompt leaves of the window or
        half of it, whichever is more; a prompt that does not fit beside them is cut from the left and counted.

        Args:
            requests: Their arguments are (prompt, settings): `until`, `max_gen_toks`, `do_sample`, `temperature` and
                what the sampler's picking knows.
            disable_tqdm: Shows no progress.

        Returns:
            The texts, cut before the first stop string.

        Raises:
            RecipeError: A setting is asked for that would have no effect.
        """
        bar = tqdm(requests, desc=f"writing, {self.procedure.name}", disable=disable_tqdm or None)
        texts, seen = [], Counter[str]()
        for request in bar:
            # A task that asks for several answers sends the same request several times.
            address = repr(request.args)
            texts.append(self._write(request.args, seen[address]))
            seen[address] += 1
        if self.counts["prompts_cut"]:
            LOG.warning("%d prompts were cut from the left to leave room for the answer", self.counts["prompts_cut"])
        return texts

    def _write(self, arguments: Sequence[Any], repeat: int) -> str:
        prompt, settings = arguments
        stops, most, picking = split_settings(settings, Picking)
        ids = self.tok_encode(prompt)
        count = min(most, max(self.window_tokens - len(ids), self.window_tokens // 2))
        kept = ids[max(0, len(ids) - (self.window_tokens - count)) :]
        self.counts.update(requests=1, prompts_cut=int(len(kept) < len(ids)))
        sampler = sampler_of(self.procedure, picking, self.window_tokens)
        reading = Reading(self.reader.decode, tuple(stops))
        seed = torch_seed(self.seed, f"write-{prompt}", repeat)
        made = sampler.sample(self.model, [kept], count, seed, reading=reading)[0]
        self.spent += Spent(made.passes, made.flops)
        return made.pieces[-1] if made.pieces else ""


def _pair(arguments: Sequence[Any]) -> tuple[str, str]:
    context, continuation = arguments
    return str(context), str(continuation)


def _joined(scores: Sequence[Scored]) -> Scored:
    known = all(score.greedy is not None for score in scores)
    return Scored(
        sum((score.nats for score in scores), 0.0), all(bool(score.greedy) for score in scores) if known else None
    )


register_model("crossover")(CrossoverLM)
