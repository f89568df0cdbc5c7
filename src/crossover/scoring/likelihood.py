"""Likelihoods and bounds of held-out text, each with its card.

Suffixes: W windows, D documents, R read states.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossover.errors import DataError, RunError
from crossover.model.backbone import Backbone
from crossover.model.loss import CHUNK_LOGITS, FEWEST_STATES
from crossover.records import ScoreCard, Vocabulary
from crossover.scoring.procedures import Procedure, Rows
from crossover.scoring.windows import ScoringWindows


def score(
    model: Backbone,
    windows: ScoringWindows,
    procedure: Procedure,
    *,
    precision: str = "float32",
    conditions: Mapping[str, Any] | None = None,
    rows: Iterable[Rows] | None = None,
) -> ScoreCard:
    """Score windows under a procedure.

    Args:
        model: The model; it is put into evaluation mode and back.
        windows: What is scored.
        procedure: How.
        precision: "float32" or "bfloat16" compute.
        conditions: What else the card should say: checkpoint, tokenizer, weights, versions.
        rows: The procedure's rows for these windows, when they were made before.

    Returns:
        The card.

    Raises:
        RunError: The model gives a score that is not a number.
    """
    nats_W = window_nats(model, windows, procedure, precision=precision, rows=rows)
    return make_card(nats_W, windows, procedure, {**_declared(windows, procedure, precision), **(conditions or {})})


def window_nats(
    model: Backbone,
    windows: ScoringWindows,
    procedure: Procedure,
    *,
    precision: str = "float32",
    rows: Iterable[Rows] | None = None,
) -> NDArray[np.float64]:
    """Score each window alone.

    Args:
        model: The model; it is put into evaluation mode and back.
        windows: What is scored.
        procedure: How.
        precision: "float32" or "bfloat16" compute; an order that the model leads is always computed in float32.
        rows: The procedure's rows for these windows, when they were made before.

    Returns:
        Nats [W] of all scored tokens of each window.

    Raises:
        DataError: A token is none that the model knows.
        RunError: The model gives a score that is not a number.
    """
    _check_tokens(windows, model.vocabulary)
    made = procedure.rows(windows, model.vocabulary) if rows is None else rows
    return _finite(sum_nats(model, made, len(windows), precision), procedure)


def window_scores(
    model: Backbone, windows: ScoringWindows, procedure: Procedure, *, precision: str = "float32"
) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    """Score each window alone and say whether the model would have written it.

    Args:
        model: The model; it is put into evaluation mode and back.
        windows: What is scored.
        procedure: How.
        precision: "float32" or "bfloat16" compute; an order that the model leads is always computed in float32.

    Returns:
        Nats [W] of all scored tokens of each window, and whether each of these tokens was the likeliest one (or one of
        them) at its turn [W]; None where that is not known: for a bound, and for `l2r` with fewer positions than a
        window scores.

    Raises:
        DataError: A token is none that the model knows.
        RunError: The model gives a score that is not a number.
    """
    _check_tokens(windows, model.vocabulary)
    every = getattr(procedure, "positions", windows.tokens_WT.shape[1])
    if not procedure.exact or (windows.scored_W > every).any():
        return window_nats(model, windows, procedure, precision=precision), None
    nats_W, missed_W = np.zeros(len(windows)), np.zeros(len(windows))
    for part, told, counts_R in _run(model, procedure.rows(windows, model.vocabulary), precision, greedy=True):
        np.add.at(nats_W, part.windows_R, told.nats_R * counts_R)
        np.add.at(missed_W, part.windows_R, ~told.greedy_R * counts_R)
    return _finite(nats_W, procedure), missed_W == 0


def sum_nats(model: Backbone, rows: Iterable[Rows], groups: int, precision: str) -> NDArray[np.float64]:
    """Add the weighted nats of rows up.

    Args:
        model: The model; it is put into evaluation mode and back.
        rows: What is computed; `windows_R` names the group that a read state belongs to.
        groups: Number of groups: windows, or blocks.
        precision: "float32" or "bfloat16" compute; rows whose order the model leads are computed in float32.

    Returns:
        Nats of each group.
    """
    nats = np.zeros(groups)
    for part, told, counts_R in _run(model, rows, precision, greedy=False):
        np.add.at(nats, part.windows_R, told.nats_R * counts_R)
    return nats


@dataclass(frozen=True)
class _Told:
    """What the model says at each read state: the target's nats and, if asked, more about the likeliest tokens."""

    nats_R: NDArray[np.float64]
    greedy_R: NDArray[np.bool_]
    first_R: NDArray[np.float64]
    second_R: NDArray[np.float64]


def _run(
    model: Backbone, rows: Iterable[Rows], precision: str, *, greedy: bool
) -> Iterator[tuple[Rows, _Told, NDArray[np.float64]]]:
    # Yields what each pass tells, with the factor on each state's nats.
    training, world, waiting = model.training, model.world, iter(rows)
    model.eval()
    try:
        while together := list(islice(waiting, world.size)):
            # A pass for each process. All must take part in each, so at the end some do the last one once more.
            mine = together[min(world.rank, len(together) - 1)]
            answers = world.gather(_ask(model, mine, precision, look=greedy or mine.choose is not None))
            for part, told in zip(together, answers, strict=False):
                chosen_R = 1.0 if part.choose is None else part.choose(told.first_R, told.second_R)
                yield part, told, part.weights_R * chosen_R
    finally:
        model.train(training)


# Not in inference mode: weights that are brought together in it could not be trained afterwards.
@torch.no_grad()
def _ask(model: Backbone, rows: Rows, precision: str, *, look: bool) -> _Told:
    device = model.device
    inputs = torch.from_numpy(np.ascontiguousarray(rows.inputs_QN)).to(device)
    positions = torch.from_numpy(rows.positions_N)[None].to(device)
    documents = None if rows.documents_QN is None else torch.from_numpy(rows.documents_QN).to(device)
    reads, targets = torch.from_numpy(rows.reads_R).to(device), torch.from_numpy(rows.targets_R).to(device)
    # Rounding to bfloat16 makes ties, and which way they fall would depend on what is computed beside them.
    low = precision == "bfloat16" and rows.choose is None
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
        # All states that are read of a pattern with two streams are noisy ones.
        plan = model.plan(rows.pattern, inputs.shape[1], documents, rows.pattern.clean)
        if look and model.world.size > 1:
            # Its chunks are as many as its states, and each brings the head together.
            raise RunError("an order that the model leads is scored by one process; score the run's model folder")
        if look:
            return _look(model, model.read_states(inputs, positions, plan, reads), targets)
        nats_R = model.nll(inputs, positions, plan, reads, targets).double().cpu().numpy()
    nothing = np.zeros(0)
    return _Told(nats_R, nothing.astype(bool), nothing, nothing)


def _look(model: Backbone, states_RD: torch.Tensor, targets_R: torch.Tensor) -> _Told:
    found = [torch.zeros((0, 4), dtype=torch.float64)]
    width = max(FEWEST_STATES, CHUNK_LOGITS // model.vocabulary.predictable)
    for states, targets in zip(states_RD.split(width), targets_R.split(width), strict=True):
        logs_CP = torch.log_softmax(model.logits(states), -1)
        top = logs_CP.topk(min(2, logs_CP.shape[1]), -1).values
        mine = logs_CP.gather(-1, targets[:, None])[:, 0]
        columns = (-mine, mine == top[:, 0], top[:, 0].exp(), top[:, -1].exp())
        found.append(torch.stack([column.double() for column in columns], -1).cpu())
    nats_R, greedy_R, first_R, second_R = torch.cat(found).numpy().T
    return _Told(nats_R, greedy_R > 0, first_R, second_R)


def _finite(nats_W: NDArray[np.float64], procedure: Procedure) -> NDArray[np.float64]:
    if not np.isfinite(nats_W).all():
        bad = int(np.flatnonzero(~np.isfinite(nats_W))[0])
        raise RunError(f"scoring with {procedure.name}: window {bad} has no finite score; the weights are not usable")
    return nats_W


def _check_tokens(windows: ScoringWindows, vocabulary: Vocabulary) -> None:
    place_T = np.arange(windows.tokens_WT.shape[1])
    shown_WT = place_T < windows.lengths_W[:, None]
    scored_WT = shown_WT & (place_T >= windows.starts_W[:, None])
    tokens_WT = windows.tokens_WT
    # A prompt may hold special tokens; the mask is none of them, for it says that a token is hidden.
    known_WT = (tokens_WT >= 0) & (tokens_WT < vocabulary.size) & (tokens_WT != vocabulary.mask_id)
    bad = np.argwhere((shown_WT & ~known_WT) | (scored_WT & (tokens_WT >= vocabulary.predictable)))
    if len(bad):
        window, place = bad[0]
        kind = "scored" if scored_WT[window, place] else "prompt"
        raise DataError(
            f"window {window}: {kind} token {tokens_WT[window, place]} at place {place} is not one of the model's "
            f"{vocabulary.predictable} tokens; was the text encoded with another tokenizer?"
        )


def _declared(windows: ScoringWindows, procedure: Procedure, precision: str) -> dict[str, Any]:
    fields = ("draws", "positions", "block", "policy", "tokens_per_step")
    prompts = {"prompt_tokens": int(windows.starts_W.sum())} if windows.starts_W.any() else {}
    return {
        "context": int(windows.tokens_WT.shape[1]),
        "windows": len(windows),
        "precision": "float32" if getattr(procedure, "asks_the_model", False) else precision,
        **{name: getattr(procedure, name) for name in fields if hasattr(procedure, name)},
        **prompts,
    }


def make_card(
    nats_W: NDArray[np.float64], windows: ScoringWindows, procedure: Procedure, conditions: Mapping[str, Any]
) -> ScoreCard:
    """Add windows up to documents and give every mean its standard error.

    The means are ratios of sums (nats over tokens, bits over bytes); their standard errors are the linearised ones
    over documents, or over windows when all are of one document. Noise of mask draws and of sub-sampled positions is
    independent between documents, so it is part of them.

    Args:
        nats_W: Nats of each window.
        windows: The windows.
        procedure: How they were scored.
        conditions: What the card should say.

    Returns:
        The card.
    """
    documents, index = np.unique(windows.documents_W, return_inverse=True)
    one = len(documents) < 2
    index, count = (np.arange(len(windows)), len(windows)) if one else (index, len(documents))
    nats, size, tokens = (
        np.bincount(index, weights=values, minlength=count).astype(np.float64)
        for values in (nats_W, windows.bytes_W, windows.scored_W)
    )
    loss, loss_error = ratio(nats, tokens)
    bits, bits_error = ratio(nats / math.log(2), size)
    return ScoreCard(
        procedure=procedure.name,
        exact=procedure.exact,
        loss_nats=loss,
        standard_error_nats=loss_error,
        bits_per_byte=bits,
        standard_error_bits=bits_error,
        tokens=int(tokens.sum()),
        text_bytes=int(size.sum()),
        documents=len(documents),
        conditions=dict(conditions),
        document_nats=tuple(float(value) for value in nats),
        document_bytes=tuple(int(value) for value in size),
        document_tokens=tuple(int(value) for value in tokens),
    )


def ratio(numerator_D: NDArray[np.float64], denominator_D: NDArray[np.float64]) -> tuple[float, float]:
    """Estimate a ratio of sums and its standard error (linearised, Cochran 1977, section 6.5).

    Args:
        numerator_D: One value per document.
        denominator_D: One value per document.

    Returns:
        Sum over sum, and its standard error over documents.
    """
    value = numerator_D.sum() / denominator_D.sum()
    rest = numerator_D - value * denominator_D
    count = len(rest)
    return float(value), float(math.sqrt(count / (count - 1) * (rest**2).sum()) / denominator_D.sum())
