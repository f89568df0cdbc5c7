"""Likelihoods and bounds of held-out text, each with its card.

Suffixes: W windows, D documents, R read states.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossover.errors import RunError
from crossover.model.backbone import Backbone
from crossover.records import ScoreCard
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
        precision: "float32" or "bfloat16" compute.
        rows: The procedure's rows for these windows, when they were made before.

    Returns:
        Nats [W] of all scored tokens of each window.

    Raises:
        RunError: The model gives a score that is not a number.
    """
    made = procedure.rows(windows, model.vocabulary) if rows is None else rows
    nats_W = sum_nats(model, made, len(windows), precision)
    if not np.isfinite(nats_W).all():
        bad = int(np.flatnonzero(~np.isfinite(nats_W))[0])
        raise RunError(f"scoring with {procedure.name}: window {bad} has no finite score; the weights are not usable")
    return nats_W


@torch.inference_mode()
def sum_nats(model: Backbone, rows: Iterable[Rows], groups: int, precision: str) -> NDArray[np.float64]:
    """Add the weighted nats of rows up.

    Args:
        model: The model; it is put into evaluation mode and back.
        rows: What is computed; `windows_R` names the group that a read state belongs to.
        groups: Number of groups: windows, or blocks.
        precision: "float32" or "bfloat16" compute.

    Returns:
        Nats of each group.
    """
    training = model.training
    model.eval()
    try:
        nats = np.zeros(groups)
        for part in rows:
            np.add.at(nats, part.windows_R, _nats(model, part, precision) * part.weights_R)
    finally:
        model.train(training)
    return nats


def _nats(model: Backbone, rows: Rows, precision: str) -> NDArray[np.float64]:
    device = model.device
    inputs = torch.from_numpy(np.ascontiguousarray(rows.inputs_QN)).to(device)
    positions = torch.from_numpy(rows.positions_N)[None].to(device)
    documents = None if rows.documents_QN is None else torch.from_numpy(rows.documents_QN).to(device)
    reads, targets = torch.from_numpy(rows.reads_R).to(device), torch.from_numpy(rows.targets_R).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        # All states that are read of a pattern with two streams are noisy ones.
        plan = model.plan(rows.pattern, inputs.shape[1], documents, rows.pattern.clean)
        return model.nll(inputs, positions, plan, reads, targets).double().cpu().numpy()


def _declared(windows: ScoringWindows, procedure: Procedure, precision: str) -> dict[str, Any]:
    return {
        "context": int(windows.tokens_WT.shape[1]),
        "windows": len(windows),
        "precision": precision,
        **{name: getattr(procedure, name) for name in ("draws", "positions", "block") if hasattr(procedure, name)},
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
        for values in (nats_W, windows.bytes_W, windows.lengths_W)
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
