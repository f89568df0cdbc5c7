"""Every number of a report, as one plain mapping: the page, the Markdown and the JSON are views of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from crossover.errors import RunError
from crossover.evidence.checked import read_progress
from crossover.evidence.compare import ArmScore, Comparison, compare, is_autoregressive, text_facts, verdict_parts
from crossover.evidence.crossing import VARIANTS, Crossing, sentence
from crossover.evidence.display import mix_text
from crossover.evidence.headline import headline, standing
from crossover.evidence.match import Proof, controller_name, prove_matched, together
from crossover.evidence.page.handover import norms_around
from crossover.evidence.page.samples import samples_of
from crossover.evidence.plots import ArmCurves
from crossover.evidence.record import RunRecord
from crossover.evidence.regret import regrets
from crossover.evidence.seed_leads import claimed_crossing
from crossover.evidence.view import View, evidence_of, turning_points

# What the page shows of a ledger and of a card, also where an interrupted run has not written it.
LEDGER_KEYS = ("unique_tokens", "data_tokens", "epochs", "flops", "evaluation_flops", "evaluation_seconds", "seconds")
PROGRESS_KEYS = ("budget_fraction", "loss_nats", "epochs", "seconds_left")
ALTERNATIVE_KEYS = ("gear", "stays", "flops_per_token", "novelty", "clears_floor", "alignment")
CARD_KEYS = (
    "exact", "headline", "bits_per_byte", "standard_error_bits", "loss_nats", "standard_error_nats", "tokens",
    "text_bytes", "documents", "conditions", "checkpoint_step",
)  # fmt: skip


@dataclass(frozen=True)
class Findings:
    """What the numbers say.

    Args:
        verdict: A few sentences.
        comparison: Test scores, or None before a run has been scored.
        crossings: By arm, where it passes the next-token arm at matched FLOPs, best so far against best so far.
        proof: Whether the runs are matched, or None where there is nothing to match.
        facts: Everything, as plain values.
    """

    verdict: str
    comparison: Comparison | None
    crossings: Mapping[str, Crossing]
    proof: Proof | None
    facts: Mapping[str, Any]


def find(view: View, curves: Sequence[ArmCurves]) -> Findings:
    """Work out everything that a report tells.

    Args:
        view: The runs.
        curves: Their curves.

    Returns:
        The findings.
    """
    comparison, refused = _comparison(view)
    proof = _proof(view)
    # Of several next-token arms the best one is to be passed, and the verdict names the same one.
    plain = [arm for arm, runs in view.arms.items() if runs and is_autoregressive(runs[0].recipe)]
    holder = (comparison.autoregressive if comparison else None) or next(iter(plain), None)
    crossings, rows = _crossings(curves, holder or (curves[0].arm if curves else None))
    crossings = crossings if holder else {}
    done = view.planned - len(view.missing)
    early = f"No verdict yet: {done} of {view.planned} run(s) have finished and been scored."
    parts = _verdict(view, comparison, crossings, proof) if comparison else {"none": refused or early}
    scores = {score.arm: score for score in comparison.arms} if comparison else {}
    facts = {
        "name": view.name,
        "headline": refused or _headline(view, comparison, curves, proof),
        "verdict": " ".join(parts.values()),
        "verdict_parts": parts,
        "text": text_facts(view.runs) if view.runs else "nothing recorded yet",
        "runs_planned": view.planned,
        "runs_finished": view.planned - len(view.missing),
        "missing": [{"run": run, "why": why, **_progress(view, run)} for run, why in view.missing.items()],
        "arms": [_arm_row(arm, runs, scores.get(arm), view.tuning.get(arm)) for arm, runs in view.arms.items()],
        "cards": [card for arm, runs in view.arms.items() for run in runs for card in _cards(arm, run)],
        "crossings": rows,
        "regret": _regret(view),
        "decisions": [row for arm, runs in view.arms.items() for run in runs for row in _decisions(view, arm, run)],
        "samples": samples_of(view),
        "ledger": [_ledger(arm, run) for arm, runs in view.arms.items() for run in runs],
        "decayed": bool(curves) and all(arm.trunks for arm in curves),
        "branches": [_branch(arm, run) for arm, runs in view.branches.items() for run in runs],
        "proof": _proof_facts(proof, view),
        "tuning": dict(view.tuning),
        "reproduce": list(view.reproduce),
    }
    return Findings(facts["verdict"], comparison, crossings, proof, facts)


def _comparison(view: View) -> tuple[Comparison | None, str]:
    """Compare the arms on test; where that cannot be done the sentence that says why, unless it is only too early."""
    if not any(run.finished and run.scores for run in view.runs):
        return None, ""
    try:
        return compare(view.arms), ""
    except RunError as error:
        return None, f"No verdict: {error}."


def _headline(view: View, comparison: Comparison | None, curves: Sequence[ArmCurves], proof: Proof | None) -> str:
    if comparison is None:
        return standing(curves, finished=view.planned - len(view.missing), planned=view.planned)
    return headline(comparison, mismatches=len(proof.mismatches) if proof else 0, missing=len(view.missing))


def _progress(view: View, name: str) -> dict[str, Any]:
    """Say how far a run has come; one that has shown nothing yet, or half a file, has come nowhere."""
    folder = view.folder / name if (view.folder / "study.yaml").exists() else view.folder
    row = read_progress(folder)
    return {"mix": mix_text(row.get("mix")), **{key: row.get(key) for key in PROGRESS_KEYS}}


def _verdict(
    view: View, comparison: Comparison, crossings: Mapping[str, Crossing], proof: Proof | None
) -> dict[str, str]:
    """Say the verdict by what its sentences are about."""
    told = verdict_parts(
        comparison,
        text=text_facts([run for run in view.runs if run.finished]),
        crossings=crossings,
        mismatches=len(proof.mismatches) if proof else 0,
        missing=len(view.missing),
    )
    absent = [arm for arm in view.arms if arm not in {score.arm for score in comparison.arms}]
    return told | ({"absent": f"Not scored yet: {', '.join(absent)}."} if absent else {})


def _crossings(curves: Sequence[ArmCurves], holder: str | None) -> tuple[dict[str, Crossing], list[dict[str, Any]]]:
    """Find where each arm passes the holder: the headline variant by arm, and all variants as rows."""
    held = next((arm for arm in curves if arm.arm == holder), None)
    headline: dict[str, Crossing] = {}
    rows: list[dict[str, Any]] = []
    for arm in curves:
        if held is None or arm is held:
            continue
        for axis, best_so_far, kind in VARIANTS:
            row = {"challenger": arm.arm, "holder": held.arm, "kind": kind, "axis": axis, "best_so_far": best_so_far,
                   "modes": f"{arm.headline} against {held.headline}"}  # fmt: skip
            try:
                found = claimed_crossing(held.curves[held.headline], arm.curves[arm.headline], axis, best_so_far)
            except RunError as error:
                rows.append({**row, "status": "unknown", "sentence": str(error)})
                continue
            rows.append({**row, "sentence": sentence(found, arm.arm, held.arm), **asdict(found)})
            if axis == "flops":
                headline[arm.arm] = found
    return headline, rows


def _regret(view: View) -> list[dict[str, Any]]:
    try:
        return [asdict(row) for row in regrets(view.arms)]
    except RunError:
        return []


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return float(np.mean(known)) if known else None


def _arm_row(arm: str, runs: Sequence[RunRecord], score: ArmScore | None, tuned: Any) -> dict[str, Any]:
    seconds = [max((row.get("seconds") or 0 for row in run.evals), default=None) for run in runs]
    tuned = tuned or {}
    return {
        "arm": arm,
        "runs": len(runs),
        "finished": sum(run.finished for run in runs),
        "score": asdict(score) if score else None,
        "epochs": _mean([run.ledger.get("epochs") for run in runs]),
        "flops": _mean([run.ledger.get("flops") for run in runs]),
        "evaluation_flops": _mean([run.ledger.get("evaluation_flops") for run in runs]),
        "evaluation_share": _mean([_share(run, "evaluation_seconds", "seconds") for run in runs]),
        "parameters": next((run.manifest["parameters"] for run in runs if "parameters" in run.manifest), None),
        "tuning_trials": len(tuned.get("trials", ())),
        "tuning_flops": tuned.get("flops", 0.0),
        "tuned": tuned.get("chosen", {}),
        "wall_seconds": _mean(seconds),
    }


def _cards(arm: str, run: RunRecord) -> list[dict[str, Any]]:
    """List every score of a run with its card, but for the per-document numbers (they stay in the run folder)."""
    lists = ("document_nats", "document_bytes", "document_tokens")
    cards = []
    for name, card in run.scores.items():
        if name != "summary":
            row = {key: value for key, value in card.items() if key not in lists}
            split, _, procedure = name.partition("-")
            row = {**dict.fromkeys(CARD_KEYS), "split": split, "procedure": procedure, **row}
            cards.append({"arm": arm, "seed": run.recipe.get("seed"), **row})
    return cards


def _decisions(view: View, arm: str, run: RunRecord) -> list[dict[str, Any]]:
    norms, name = norms_around(run, view.norms[run.path]), controller_name(run.recipe)
    rows = []
    for row in turning_points(run.decisions):
        details = row.get("details") or {}
        before, after = norms.get(row.get("step", -1), (None, None))
        rows.append(
            {
                "arm": arm,
                "seed": run.recipe.get("seed"),
                "controller": name,
                **{key: row.get(key) for key in ("step", "data_tokens", "epochs", "flops")},
                "before": mix_text(row.get("before")),
                "mix": mix_text(details.get("to") or row.get("mix")),
                "reason": row.get("reason", ""),
                "grad_norm_before": before,
                "grad_norm_after": after,
                "evidence": evidence_of(row),
                "readings": _readings(details.get("readings")),
                "alternatives": _alternatives(details.get("alternatives")),
            }
        )
    return rows


def _readings(recorded: Any) -> list[dict[str, Any]]:
    """List what a decision was taken on; a reading is written as its value and its standard error."""
    pairs = recorded.items() if isinstance(recorded, Mapping) else ()
    return [
        {"name": str(name), "value": pair[0], "standard_error": pair[1]}
        for name, pair in pairs
        if isinstance(pair, list | tuple) and len(pair) == 2
    ]


def _alternatives(recorded: Any) -> list[dict[str, Any]]:
    rows = recorded if isinstance(recorded, list | tuple) else ()
    return [{**dict.fromkeys(ALTERNATIVE_KEYS), **row} for row in rows if isinstance(row, Mapping)]


def _ledger(arm: str, run: RunRecord) -> dict[str, Any]:
    row = {"arm": arm, "seed": run.recipe.get("seed"), "state": run.status.get("state"), "exposures": {}}
    shares = {
        # The final scores come after that time.
        "evaluation_share": _share(run, "evaluation_seconds", "seconds"),
        "probe_flops_share": _share(run, "probe_flops", "flops"),
        "probe_seconds_share": _share(run, "probe_seconds", "seconds"),
    }
    return {**row, **dict.fromkeys(LEDGER_KEYS), **run.ledger, **shares}


def _branch(arm: str, run: RunRecord) -> dict[str, Any]:
    """Say what a run of a smaller budget cost beyond the run that it goes on from."""
    flops, begins = run.ledger.get("flops"), (run.manifest.get("branch") or {}).get("flops") or 0.0
    own = flops - begins if isinstance(flops, int | float) else None
    return {"arm": arm, "seed": run.recipe.get("seed"), "flops": flops, "begins": begins, "own_flops": own,
            "epochs": run.ledger.get("epochs")}  # fmt: skip


def _share(run: RunRecord, part: str, whole: str) -> float | None:
    """Divide two amounts of a run's ledger, where both are recorded."""
    spent, of = run.ledger.get(part), run.ledger.get(whole)
    return spent / of if isinstance(spent, int | float) and isinstance(of, int | float) and of > 0 else None


def _proof(view: View) -> Proof | None:
    """Prove the runs matched, budget by budget; a smaller budget once all of its runs have ended."""
    # A run that has only just begun has recorded nothing yet that could be held against it.
    groups = [[run for run in view.runs if run.manifest]]
    branches = [run for runs in view.branches.values() for run in runs]
    for amount in view.budgets:
        group = [run for run in branches if (run.manifest.get("budget") or {}).get("amount") == amount]
        groups += [group] if len(group) == len(view.runs) else []
    proofs = [prove_matched(group, vary=view.vary, tunable=view.tunable) for group in groups if len(group) > 1]
    return together(proofs) if proofs else None


def _proof_facts(proof: Proof | None, view: View) -> dict[str, Any] | None:
    if proof is None:
        return None
    return {
        "matched": proof.matched,
        "checked": proof.checked,
        "runs": proof.runs,
        "mismatches": [asdict(item) for item in proof.mismatches],
        "declared": {key: dict(values) for key, values in proof.declared.items()},
        "handicap": _handicap(view) if "manifest.train_tokens" in proof.declared else "",
    }


def _handicap(view: View) -> str:
    """Say which arms trained on less text than the others."""
    tokens = {
        arm: min(run.manifest.get("train_tokens", run.manifest.get("unique_tokens", 0)) for run in begun)
        for arm, runs in view.arms.items()
        if (begun := [run for run in runs if run.manifest])
    }
    most = max(tokens.values(), default=0)
    fewer = [f"{arm} on {count:,} ({count / most:.1%})" for arm, count in tokens.items() if count < most]
    if not fewer:
        return ""
    return (
        f"Not all arms trained on the same {most:,} tokens: {', '.join(fewer)}. A controller that reads held-out "
        f"control text does not train on it; that handicap is part of its results."
    )
