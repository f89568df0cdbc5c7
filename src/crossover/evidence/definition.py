"""The study file: which arms, which seeds, which budget, and the resolved recipe of every run."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic import TypeAdapter

from crossover.errors import RecipeError, nearest
from crossover.evidence.tune import Tune
from crossover.recipe import resolve, to_tree, trust_imports
from crossover.sections import Amount, budget_label
from crossover.trees import apply, read_tree, without_views

KEYS = ("name", "recipe", "vary", "arms", "seeds", "budget", "budgets", "set", "tunable", "tune", "jobs")
TUNE_KEYS = ("trials", "seed", "grid", "budget")
# An arm's name is the name of its folder, and no path.
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
# Folder names inside a study that no arm may take.
TAKEN = ("tune", "report", "recipes", "logs")
CURRENCIES = ("tokens", "flops", "minutes")


@dataclass(frozen=True)
class Study:
    """A study as its file (and the command line) says it.

    Args:
        name: Its name; its folder is `runs/<name>` unless another is given.
        vary: The one dotted key that the arms differ in.
        arms: The varied key's value by arm.
        settings: What an arm sets besides, by arm; tunable keys only.
        seeds: Seeds; every arm runs each.
        budget: The budget of every run, in one currency.
        budgets: Smaller budgets in the same currency, rising, at which every arm is measured too.
        tunable: Keys in which arms may differ because they were tuned.
        tune: How every arm is tuned, or None.
        jobs: Worker processes.
        base: The recipe tree below all arms, overrides included.
        origin: The study file, for errors.
    """

    name: str
    vary: str
    arms: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    budget: Mapping[str, Any]
    budgets: tuple[float, ...]
    tunable: tuple[str, ...]
    tune: Tune | None
    jobs: int
    base: Mapping[str, Any]
    origin: str

    def recipe(
        self, arm: str, seed: int, *, chosen: Mapping[str, Any], budget: Mapping[str, Any], threads: int, name: str
    ) -> dict[str, Any]:
        """Resolve the recipe of one run.

        Args:
            arm: The arm.
            seed: The run's seed.
            chosen: Settings that tuning chose (or tries).
            budget: The run's budget.
            threads: CPU threads, where the recipe leaves them open.
            name: The run's name.

        Returns:
            The resolved recipe as a plain mapping.

        Raises:
            RecipeError: A setting is wrong.
        """
        tree = copy.deepcopy(dict(self.base))
        try:
            for key, value in {self.vary: self.arms[arm], **self.settings[arm], **chosen}.items():
                put(tree, key, value)
        except RecipeError as error:
            raise RecipeError(f"{self.origin}: arms.{arm}: {error}") from None
        tree |= {"name": name, "seed": seed, "budget": dict(budget)}
        resolved = to_tree(resolve(tree, origin=f"{self.origin}: arms.{arm}"))
        if resolved["training"]["threads"] is None:
            resolved["training"]["threads"] = threads
        return resolved

    @property
    def sinks(self) -> tuple[Any, ...]:
        """What shows the runs besides their folders; the same for all arms."""
        return resolve({"sinks": self.base.get("sinks", ())}, origin=self.origin).sinks

    def definition(self, threads: int) -> dict[str, Any]:
        """Write all that makes this study this study, as a plain mapping (jobs apart: they change nothing)."""
        tune = self.tune
        return {
            "name": self.name,
            "vary": self.vary,
            "arms": {arm: {"value": value, "set": dict(self.settings[arm])} for arm, value in self.arms.items()},
            "seeds": list(self.seeds),
            "budget": dict(self.budget),
            # Not in folders of studies that have one budget only.
            **({"budgets": list(self.budgets)} if self.budgets else {}),
            "tunable": list(self.tunable),
            "tune": tune
            and {
                "trials": tune.trials,
                "seed": tune.seed,
                "grid": {key: list(values) for key, values in tune.grid.items()},
                "budget": dict(tune.budget or self.budget),
            },
            "threads": threads,
            "base": without_views(self.base),
        }


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key to a value, in place, as an override on the command line would."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("...\n").strip()
    apply(tree, f"{key}={text}")


def number(value: Any) -> Any:
    """Read `2e12`, which YAML takes for text, as the number that is meant."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", value.strip()):
        return float(value)
    return value


def read_study(path: str | Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Study:
    """Read a study file.

    Args:
        path: The YAML file.
        overrides: `study.key=value` settings of the study, or `key=value` settings of every arm's recipe.
        trust: Whether the recipe's `imports` may run.

    Returns:
        The study, every arm's recipe checked.

    Raises:
        RecipeError: A key is unknown, missing or of the wrong kind, or two settings contradict each other.
    """
    tree, lines = read_tree(path)
    ours = [text.removeprefix("study.") for text in overrides if text.startswith("study.")]
    for override in ours:
        apply(tree, override)
    reader = _Reader(tree, str(path), lines)
    reader.only(tree, KEYS, "")
    base = _base(reader, Path(path), [text for text in overrides if not text.startswith("study.")])
    trust_imports(base.get("imports") or (), trust=trust, origin=str(path))
    study = _study(reader, base)
    _check_runs(study, reader, overrides)
    return study


def _study(reader: _Reader, base: Mapping[str, Any]) -> Study:
    tree, vary = reader.tree, reader.text("vary", "controller")
    arms, settings = _arms(reader, vary)
    seeds = tree.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise reader.error("seeds", f"expected a list of whole numbers such as [0, 1], not {seeds!r}")
    if len(set(seeds)) != len(seeds):
        raise reader.error("seeds", f"a seed stands twice in {seeds!r}")
    tunable = tree.get("tunable", [])
    if not isinstance(tunable, list) or any(not isinstance(key, str) for key in tunable):
        raise reader.error("tunable", f"expected a list of dotted keys, not {tunable!r}")
    jobs = tree.get("jobs", 2)
    if type(jobs) is not int or jobs < 1:
        raise reader.error("jobs", f"expected a whole number of worker processes, not {jobs!r}")
    tune = _tune(reader)
    budget = _budget(reader, "budget", tree.get("budget"))
    return Study(
        name=reader.text("name", Path(reader.origin).stem),
        vary=vary,
        arms=arms,
        settings=settings,
        seeds=tuple(seeds),
        budget=budget,
        budgets=_budgets(reader, budget),
        tunable=tuple(dict.fromkeys([*tunable, *(tune.grid if tune else ())])),
        tune=tune,
        jobs=jobs,
        base=base,
        origin=reader.origin,
    )


@dataclass(frozen=True)
class _Reader:
    """The file's tree and how to complain about a place in it."""

    tree: Mapping[str, Any]
    origin: str
    lines: Mapping[str, int]

    def error(self, key: str, message: str) -> RecipeError:
        """Make an error that names the file, the line and the key."""
        line = self.lines.get(key)
        return RecipeError(f"{self.origin}{f', line {line}' if line else ''}: {key}: {message}")

    def only(self, tree: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
        """Refuse unknown keys."""
        for key in tree:
            if key not in known:
                raise self.error(f"{prefix}{key}", f"no such setting; {nearest(str(key), known)}")

    def text(self, key: str, default: str) -> str:
        """Read a setting that is text."""
        value = self.tree.get(key, default)
        if not isinstance(value, str) or not value:
            raise self.error(key, f"expected text, not {value!r}")
        return value

    def mapping(self, key: str, value: Any) -> dict[str, Any]:
        """Read a setting that is a mapping."""
        if not isinstance(value, Mapping):
            raise self.error(key, f"expected `key: value` lines, not {value!r}")
        return dict(value)


def _base(reader: _Reader, path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    if "recipe" not in reader.tree:
        raise reader.error("recipe", "is missing; name the recipe file that all arms share")
    named = path.parent / reader.text("recipe", "")
    try:
        base, _ = read_tree(named)
    except RecipeError as error:
        # Who looks for the mistake begins at the study that names the recipe.
        raise reader.error("recipe", str(error)) from None
    for key, value in reader.mapping("set", reader.tree.get("set", {})).items():
        try:
            put(base, key, number(value))
        except RecipeError as error:
            raise reader.error(f"set.{key}", str(error)) from None
    for override in overrides:
        apply(base, override)
    return base


def _arms(reader: _Reader, vary: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    arms = reader.mapping("arms", reader.tree.get("arms"))
    if not arms:
        raise reader.error("arms", "a study needs at least one arm")
    values: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] = {}
    tune, listed = reader.tree.get("tune"), reader.tree.get("tunable")
    grid = tune.get("grid") if isinstance(tune, Mapping) else None
    allowed = [*(listed if isinstance(listed, list) else ()), *(grid if isinstance(grid, Mapping) else ())]
    for arm, content in arms.items():
        place = f"arms.{arm}"
        if not ARM_NAME.fullmatch(str(arm)) or arm in TAKEN:
            taken = ", ".join(TAKEN)
            raise reader.error(place, f"an arm's name is a folder: letters, digits, _ . + -, but not {taken}")
        content = reader.mapping(place, content)
        reader.only(content, (vary, "set"), f"{place}.")
        if vary not in content:
            raise reader.error(place, f"must say its {vary}, which is what the arms vary")
        values[str(arm)] = content[vary]
        given = reader.mapping(f"{place}.set", content.get("set") or {})
        for key in given:
            if key not in allowed:
                raise reader.error(
                    f"{place}.set.{key}", f"arms may differ in {vary} and in tunable keys only; list it under tunable"
                )
        settings[str(arm)] = {key: number(value) for key, value in given.items()}
    return values, settings


def _budget(reader: _Reader, key: str, value: Any) -> dict[str, Any]:
    budget = reader.mapping(key, value) if value is not None else {}
    reader.only(budget, CURRENCIES, f"{key}.")
    if len(budget) != 1:
        raise reader.error(key, f"give exactly one of {', '.join(CURRENCIES)}, such as {{flops: 2e12}}")
    return {name: number(amount) for name, amount in budget.items()}


def _budgets(reader: _Reader, budget: Mapping[str, Any]) -> tuple[float, ...]:
    given = reader.tree.get("budgets") or []
    (currency, stated), *_ = budget.items()
    largest = _amount(stated) or 0.0
    amounts = [found for item in given if (found := _amount(item)) is not None] if isinstance(given, list) else []
    if not isinstance(given, list) or len(amounts) < len(given) or any(amount >= largest for amount in amounts):
        raise reader.error(
            "budgets", f"expected a list of {currency} between 0 and the budget's {stated}, not {given!r}"
        )
    if amounts and currency == "minutes":
        raise reader.error("budgets", "minutes are converted run by run; give budget and budgets in flops or tokens")
    labels = [budget_label(amount) for amount in amounts]
    if len({*labels, budget_label(largest)}) <= len(labels):
        raise reader.error("budgets", f"a budget stands twice in {given!r}, or is the study's own")
    return tuple(sorted(amounts))


def _amount(value: Any) -> float | None:
    """Read an amount of a budget, such as 2e12 or 480k; None where it is none."""
    try:
        return TypeAdapter(Amount).validate_python(number(value))
    except pydantic.ValidationError:
        return None


def _tune(reader: _Reader) -> Tune | None:
    if reader.tree.get("tune") is None:
        return None
    tree = reader.mapping("tune", reader.tree["tune"])
    reader.only(tree, TUNE_KEYS, "tune.")
    grid = reader.mapping("tune.grid", tree.get("grid"))
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise reader.error(f"tune.grid.{key}", f"expected a list of values to try, not {values!r}")
    trials, seed = tree.get("trials"), tree.get("seed", 0)
    if type(trials) is not int or trials < 1 or type(seed) is not int:
        raise reader.error("tune.trials", f"expected a whole number of trials for each arm, not {trials!r}")
    budget = _budget(reader, "tune.budget", tree["budget"]) if tree.get("budget") is not None else None
    return Tune(trials, {key: tuple(number(item) for item in values) for key, values in grid.items()}, seed, budget)


def _check_runs(study: Study, reader: _Reader, overrides: Sequence[str]) -> None:
    """Refuse overrides that could have no effect, and resolve every arm once before anything is started."""
    tuned = study.tune.grid if study.tune else {}
    for key in [text.split("=")[0] for text in overrides if not text.startswith("study.")]:
        section = key.split(".")[0]
        if section in ("seed", "name", "budget"):
            hint = {"seed": "study.seeds=[0]", "name": "study.name=...", "budget": "study.budget.flops=..."}[section]
            raise RecipeError(f"{key}: has no effect here, the study sets it; use {hint}")
        if key == study.vary or key.startswith(f"{study.vary}."):
            raise RecipeError(f"{key}: has no effect here, it is what the arms vary; use study.arms.<arm>.{key}=...")
        arms = [arm for arm, given in study.settings.items() if key in given]
        if arms or key in tuned:
            raise RecipeError(f"{key}: has no effect on {', '.join(arms) or 'any arm'}, which sets it by itself")
    seen: dict[str, str] = {}
    for arm in study.arms:
        for given in study.settings[arm]:
            if given in tuned:
                raise reader.error(f"arms.{arm}.set.{given}", "has no effect, tune.grid chooses it")
        recipe = study.recipe(arm, 0, chosen={key: values[0] for key, values in tuned.items()},
                              budget=study.budget, threads=1, name="check")  # fmt: skip
        same = seen.setdefault(yaml.safe_dump(recipe), arm)
        if same != arm:
            raise reader.error(f"arms.{arm}", f"is the same as {same}; arms must differ")
