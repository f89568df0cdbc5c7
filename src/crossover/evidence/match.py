"""Proof that runs differ only in what the study varies, or the list of everything else that differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossover.errors import RunError
from crossover.evidence.record import RunRecord
from crossover.trees import flatten, without_views

FLOPS_WITHIN = 0.005
MANIFEST_KEYS = ("data_hash", "data_source", "unique_tokens", "tokenizer_hash", "parameters")
MANIFEST_TREES = ("versions", "choices", "budget")
# Choices without which "matched" cannot be claimed; whatever else `choices` holds is compared too.
CHOICES = ("precision", "compile", "threads", "attention")
MISSING = "(not recorded)"
# What follows from another text, where the study varies it; tokens and tokenizer must be equal all the same.
OF_TEXT = ("manifest.data_hash", "manifest.data_source")
# Controllers that follow a plan, the placebo that follows a lot, and those that hold control text out.
STATIC = ("constant", "static_dual", "switch", "ramp", "block_growth")
PLACEBO = "random_time"
HOLDING_OUT = ("online", "watch")


@dataclass(frozen=True)
class Mismatch:
    """One thing that should be equal and is not.

    Args:
        key: Dotted name, such as "recipe.training.clip_norm" or "manifest.data_hash".
        values: What each run has, by run name.
        why: The rule that is broken.
    """

    key: str
    values: Mapping[str, Any]
    why: str = "must be equal in all runs"


@dataclass(frozen=True)
class Proof:
    """What was checked and what failed.

    Args:
        mismatches: Empty when the runs are matched.
        declared: What may differ and does, by dotted key and then by run: the varied key, the tunable ones, the
            machine, and the tokens trained on where some controllers hold control text out.
        checked: How many keys were compared.
        runs: How many runs were compared.
    """

    mismatches: tuple[Mismatch, ...]
    declared: Mapping[str, Mapping[str, Any]]
    checked: int
    runs: int

    @property
    def matched(self) -> bool:
        """Whether nothing but the declared differs."""
        return not self.mismatches


@dataclass(frozen=True)
class _Facts:
    name: str
    arm: tuple[tuple[str, str], ...]
    seed: Any
    recipe: Mapping[str, Any]
    manifest: Mapping[str, Any]
    ledger: Mapping[str, Any]
    tuning: Mapping[str, Any]


def prove_matched(runs: Sequence[RunRecord | Mapping[str, Any]], *, vary: str, tunable: Sequence[str] = ()) -> Proof:
    """Compare everything that should be equal among the runs of a study.

    Recipes are compared key by key (names apart); every arm must have the same seeds; data, data order (seed by
    seed), tokenizer, unique tokens, parameters, versions, machine choices, budgets and tuning trials must be equal;
    what was spent must agree within 0.5% or one step, whichever is more.

    A controller that holds control text out (`online`, `watch`) trains on fewer tokens, so the order of its data
    differs by necessity: orders are compared among runs of equal seed and equal `train_tokens`. That is a handicap
    which such arms carry openly: `manifest.train_tokens` then stands under what is declared. It must still be equal
    among the controllers that hold text out, and among the plans, which hold nothing out.

    Where the study varies the text itself (`data.source`), its hash and order differ by necessity: orders are compared
    among runs of one text, and unique tokens and tokenizer must be equal all the same.

    Args:
        runs: Run records, or mappings with `recipe`, `manifest`, `ledger` and `tuning`.
        vary: The dotted key that the arms differ in.
        tunable: Dotted keys that may differ between arms because they were tuned or declared.

    Returns:
        The proof, with each mismatch.

    Raises:
        RunError: There are no runs.
    """
    if not runs:
        raise RunError("there is nothing to compare: no run has begun")
    allowed = (vary, *tunable)
    facts = [_facts(run, index, allowed) for index, run in enumerate(runs)]
    flat = [_comparable(item) for item in facts]
    texts_vary = _covered("recipe.data.source", allowed)
    free = OF_TEXT if texts_vary else ()
    keys = [key for one in flat for key in one if not _covered(key, allowed) and key not in free]
    keys = list(dict.fromkeys(keys))
    found = [_equal(key, facts, [one.get(key, MISSING) for one in flat]) for key in keys]
    groups = _read_alike(facts, texts_vary)
    found += [_same_seeds(facts), _spent(facts), *_trained_on(facts), *(_order(group) for group in groups)]
    mismatches = tuple(item for item in found if item is not None)
    return Proof(mismatches, _declared(facts, allowed), len(keys) + 3 + len(groups), len(runs))


def together(proofs: Sequence[Proof]) -> Proof:
    """Make one proof of several, each of which compared runs of one budget.

    Args:
        proofs: One or more.

    Returns:
        Every mismatch, everything declared, keys and runs added up.
    """
    declared: dict[str, dict[str, Any]] = {}
    for proof in proofs:
        for key, held in proof.declared.items():
            declared.setdefault(key, {}).update(held)
    mismatches = tuple(item for proof in proofs for item in proof.mismatches)
    return Proof(mismatches, declared, sum(one.checked for one in proofs), sum(one.runs for one in proofs))


def controller_name(recipe: Mapping[str, Any]) -> str:
    """Read the name of a resolved recipe's controller, such as "switch"; the outer one where one wraps another."""
    controller = recipe.get("controller") or {}
    return str(controller.get("name") if isinstance(controller, Mapping) else controller).split("(")[0].strip()


def is_constant(recipe: Mapping[str, Any], objective: str) -> bool:
    """Say whether a resolved recipe trains with one plain objective from start to end."""
    controller = recipe.get("controller")
    if isinstance(controller, str):
        return controller.replace(" ", "") == f"constant({objective})"
    if not isinstance(controller, Mapping) or controller.get("name") != "constant":
        return False
    mixes = [value for key, value in controller.items() if key != "name"]
    return mixes in ([{objective: 1.0}], [objective])


def _covered(key: str, allowed: Sequence[str]) -> bool:
    bare = key.removeprefix("recipe.")
    return key.startswith("recipe.") and any(bare == name or bare.startswith(f"{name}.") for name in allowed)


def _facts(run: RunRecord | Mapping[str, Any], index: int, allowed: Sequence[str]) -> _Facts:
    plain = run if isinstance(run, Mapping) else vars(run)
    recipe = plain["recipe"]
    varied = {key: repr(value) for key, value in flatten(recipe).items() if _covered(f"recipe.{key}", allowed)}
    return _Facts(
        name=str(recipe.get("name") or f"run {index}"),
        arm=tuple(sorted(varied.items())),
        seed=recipe.get("seed"),
        recipe=recipe,
        manifest=plain.get("manifest") or {},
        ledger=plain.get("ledger") or {},
        tuning=plain.get("tuning") or {"trials": 0},
    )


def _comparable(facts: _Facts) -> dict[str, Any]:
    """Gather under dotted keys what must be equal; what should be recorded and is not stays visible."""
    settings = flatten(without_views(facts.recipe))
    recipe = {f"recipe.{key}": value for key, value in settings.items() if key not in ("name", "seed")}
    recorded = {f"manifest.{key}": facts.manifest.get(key, MISSING) for key in MANIFEST_KEYS}
    for tree in MANIFEST_TREES:
        under = facts.manifest.get(tree)
        flat = flatten(under, f"manifest.{tree}.") if isinstance(under, Mapping) and under else {}
        recorded.update(flat or {f"manifest.{tree}": MISSING})
    choices = facts.manifest.get("choices") or {}
    recorded.update({f"manifest.choices.{name}": MISSING for name in CHOICES if choices and name not in choices})
    # The sentence that explains the choices quotes an estimate of seconds, which no two runs share.
    recorded.pop("manifest.choices.reason", None)
    # Minutes are converted on each machine; that conversion is compared as what was spent.
    recorded.pop("manifest.budget.flops", None)
    return {**recipe, **recorded, "tuning.trials": facts.tuning.get("trials", MISSING)}


def _named(facts: Sequence[_Facts], values: Sequence[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for index, (item, value) in enumerate(zip(facts, values, strict=True)):
        named[item.name if item.name not in named else f"{item.name} #{index}"] = value
    return named


def _equal(key: str, facts: Sequence[_Facts], values: Sequence[Any]) -> Mismatch | None:
    manifest = key.startswith("manifest.")
    if key.startswith("manifest.choices.attention."):
        # Back ends are chosen by pattern, and an arm has only the patterns of its own objectives.
        facts, values = zip(*[pair for pair in zip(facts, values, strict=True) if pair[1] != MISSING], strict=True)
    if manifest and MISSING in values:
        return Mismatch(key, _named(facts, values), "must be recorded to be compared")
    return None if all(value == values[0] for value in values) else Mismatch(key, _named(facts, values))


def _same_seeds(facts: Sequence[_Facts]) -> Mismatch | None:
    by_arm: dict[tuple[tuple[str, str], ...], list[Any]] = {}
    for item in facts:
        by_arm.setdefault(item.arm, []).append(item.seed)
    seeds = [sorted(of_arm, key=str) for of_arm in by_arm.values()]
    if all(of_arm == seeds[0] for of_arm in seeds):
        return None
    return Mismatch(
        "recipe.seed", _named(facts, [item.seed for item in facts]), "every arm must have the same seeds, each once"
    )


def _train_tokens(facts: _Facts) -> Any:
    """Give the tokens that a run trains on: all of its text where an older run did not say."""
    return facts.manifest.get("train_tokens", facts.manifest.get("unique_tokens", MISSING))


def _trained_on(facts: Sequence[_Facts]) -> list[Mismatch | None]:
    """Compare the tokens trained on where no controller explains a difference; of others' own it is only told."""
    found: list[Mismatch | None] = []
    for kinds, who in (
        ((*STATIC, PLACEBO), "plans, which hold nothing out"),
        (HOLDING_OUT, "those that hold text out"),
    ):
        group = [item for item in facts if controller_name(item.recipe) in kinds]
        values = [_train_tokens(item) for item in group]
        if any(value != values[0] for value in values):
            found.append(Mismatch("manifest.train_tokens", _named(group, values), f"must be equal among {who}"))
    return found


def _read_alike(facts: Sequence[_Facts], texts_vary: bool) -> list[list[_Facts]]:
    """Group the runs that should have read their text in one order; other texts have other orders."""
    groups: dict[tuple[Any, Any, Any], list[_Facts]] = {}
    for item in facts:
        text = item.manifest.get("data_hash") if texts_vary else None
        groups.setdefault((item.seed, _train_tokens(item), text), []).append(item)
    return list(groups.values())


def _order(group: Sequence[_Facts]) -> Mismatch | None:
    values = [item.manifest.get("data_order", MISSING) for item in group]
    if MISSING not in values and all(value == values[0] for value in values):
        return None
    why = f"must be recorded and equal for seed {group[0].seed} and {_train_tokens(group[0])} tokens trained on"
    return Mismatch("manifest.data_order", _named(group, values), why)


def _spent(facts: Sequence[_Facts]) -> Mismatch | None:
    """Compare what was spent, in the budget's own currency (FLOPs unless the budget counts tokens)."""
    currency = {str((item.manifest.get("budget") or {}).get("currency")) for item in facts}
    key = "data_tokens" if currency == {"tokens"} else "flops"
    values = [float(item.ledger.get(key) or 0) for item in facts]
    if min(values) <= 0:
        shown = [value or MISSING for value in values]
        return Mismatch(f"ledger.{key}", _named(facts, shown), "must be recorded to be compared")
    step = max(_one_step(item, key) for item in facts)
    tolerance = max(FLOPS_WITHIN * max(values), step)
    if max(values) - min(values) <= tolerance:
        return None
    why = f"must agree within {tolerance:.3g} (0.5% or one step, whichever is more)"
    return Mismatch(f"ledger.{key}", _named(facts, values), why)


def _one_step(item: _Facts, key: str) -> float:
    tokens = float((item.recipe.get("training") or {}).get("batch_tokens") or 0)
    seen = float(item.ledger.get("data_tokens") or 0)
    # A run of a few steps only would make any difference look like one step.
    return min(tokens / seen, 0.05) * float(item.ledger[key]) if seen > 0 else 0.0


def _declared(facts: Sequence[_Facts], allowed: Sequence[str]) -> dict[str, dict[str, Any]]:
    """List what may differ and does, by key and by run; differences of machine are told, not forbidden."""
    table: dict[str, dict[str, Any]] = {}
    readers: dict[str, Callable[[_Facts], Mapping[str, Any]]] = {
        "": lambda item: {key: value for key, value in flatten(item.recipe).items()},
        "machine.": lambda item: flatten(item.manifest.get("machine") or {}),
    }
    for prefix, reader in readers.items():
        flat = [reader(item) for item in facts]
        for key in dict.fromkeys(key for one in flat for key in one):
            values = [one.get(key, "-") for one in flat]
            wanted = prefix == "machine." or _covered(f"recipe.{key}", allowed)
            if wanted and any(value != values[0] for value in values):
                table[f"{prefix}{key}"] = _named(facts, values)
    tokens = [_train_tokens(item) for item in facts]
    if any(value != tokens[0] for value in tokens):
        table["manifest.train_tokens"] = _named(facts, tokens)
    return table
