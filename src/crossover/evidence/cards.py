"""Two models' score cards side by side: what may not differ is named, and only then is a difference given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossover.errors import RunError
from crossover.evidence.checked import read_score
from crossover.evidence.compare import (
    Interval,
    Sample,
    resample_documents,
)
from crossover.evidence.conditions import settle
from crossover.trees import fingerprint, flatten

# Shape suffix: D documents.

# What a card must hold before anything is computed from it.
_NEEDED = ("procedure", "exact", "conditions", "document_nats", "document_bytes", "document_tokens")
# Two models differ in these by nature: they are reported.
_OF_MODEL = ("checkpoint", "checkpoint_step", "checkpoint_sha256", "weights_sha256")
_MISSING = "not stated"
_FEW_DOCUMENTS = 30


@dataclass(frozen=True)
class Card:
    """A score card as it was read from its file.

    Args:
        path: The file.
        row: What it holds.
    """

    path: Path
    row: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The file's stem, such as `test-ar`."""
        return self.path.stem

    @property
    def conditions(self) -> dict[str, Any]:
        """Everything that the number depends on beside the weights, by dotted field."""
        sizes = self.row["document_bytes"]
        text = f"{len(sizes)} documents, {sum(sizes):,} bytes, hash {fingerprint({'bytes': sizes})}"
        stated = flatten({**self.row["conditions"], "split": self.row.get("split")})
        kept = {key: value for key, value in stated.items() if key not in _OF_MODEL}
        return {"procedure": self.row["procedure"], "exact": self.row["exact"], "documents": text, **kept}

    @property
    def model(self) -> dict[str, Any]:
        """What identifies the weights."""
        return {key: self.row["conditions"][key] for key in _OF_MODEL if key in self.row["conditions"]}

    def sample(self, draws: int, seed: int, *, per_token: bool = False) -> Sample:
        """Resample the documents: bits per byte, or nats per token.

        Args:
            draws: Bootstrap draws.
            seed: Their seed.
            per_token: Whether `bits_K` holds nats per token instead.

        Returns:
            The sample; cards of the same documents get the same draws, which pairs them.
        """
        nats_D = np.array(self.row["document_nats"], float)
        tokens_D = np.array(self.row["document_tokens"], float)
        bytes_D = np.array(self.row["document_bytes"], float)
        # Nats over tokens are bits over tokens / ln 2.
        sizes_D = tokens_D / np.log(2) if per_token else bytes_D
        bits_K = resample_documents(nats_D[None], sizes_D, (0,), draws, seed)
        loss = float(nats_D.sum() / tokens_D.sum())
        return Sample(self.name, self.row["procedure"], self.row["exact"], (0,), loss, bytes_D, bits_K)


@dataclass(frozen=True)
class CardComparison:
    """The difference of two cards, second minus first; below 0 the second model is better.

    Args:
        cards: Names of the two cards, first and second.
        procedures: Their procedures.
        exact: Whether each number is a likelihood and not a bound.
        bits_per_byte: The two numbers.
        bits_difference: Second minus first, bits per byte.
        bits_interval: Its 95% interval over documents.
        nats_difference: Second minus first, nats per token; None where the models cut text into other tokens.
        nats_interval: Its 95% interval over documents.
        documents: Scored documents of the first and the second.
        paired: Whether the difference was taken document by document.
        allowed: Fields that differ and were allowed to, with both values.
        models: What identifies the weights of the first and the second.
    """

    cards: tuple[str, str]
    procedures: tuple[str, str]
    exact: tuple[bool, bool]
    bits_per_byte: tuple[float, float]
    bits_difference: float
    bits_interval: Interval
    nats_difference: float | None
    nats_interval: Interval | None
    documents: tuple[int, int]
    paired: bool
    allowed: Mapping[str, tuple[Any, Any]]
    models: tuple[Mapping[str, Any], Mapping[str, Any]]

    @property
    def apart(self) -> bool:
        """Whether the two can be told apart."""
        return not self.bits_interval[0] <= 0 <= self.bits_interval[1]


def compare(
    first: Path | str, second: Path | str, *, allow: Sequence[str] = (), draws: int = 2000, seed: int = 0
) -> tuple[CardComparison, ...]:
    """Compare two models' numbers, card by card, if their cards say that they may be compared.

    Of two folders the cards are compared that both have; where `procedure` is allowed to differ, or they have none in
    common, the headline cards of the test text.

    Args:
        first: A run folder, its model folder, a folder of score cards, or one card.
        second: Likewise.
        allow: Fields that may differ, such as "precision" or "versions.torch"; "versions" allows all of them.
        draws: Bootstrap draws over documents.
        seed: Seed of the bootstrap.

    Returns:
        Comparisons, those of the test text first.

    Raises:
        RunError: There is no card, a card is broken, a field is not known, or fields differ that may not: each is
            named with both values.
    """
    if draws < 1:
        raise RunError(f"draws must be at least 1, not {draws}")
    pairs = _pairs(read_cards(first), read_cards(second), "procedure" in allow)
    conditions = [(one.name, one.conditions, two.conditions) for one, two in pairs]
    allowed = settle(conditions, allow, first, second)
    return tuple(_difference(*pair, fields, draws, seed) for pair, fields in zip(pairs, allowed, strict=True))


def read_cards(path: Path | str) -> dict[str, Card]:
    """Read score cards.

    Args:
        path: A run folder, its model folder, a folder of score cards, or one card.

    Returns:
        Cards by name; files that are no cards of likelihoods, such as the summary, are left out.

    Raises:
        RunError: There is no card, or one is broken.
    """
    path = Path(path)
    if path.is_file():
        row = read_score(path)
        missing = [key for key in _NEEDED if key not in row]
        if missing:
            raise RunError(f"{path}: is no score card: it lacks {', '.join(missing)}")
        return {path.stem: _checked(Card(path, row))}
    places = [path / "scores", *([path.parent / "scores"] if (path / "config.json").exists() else []), path]
    files = next((sorted(place.glob("[!.]*.json")) for place in places if place.is_dir()), [])
    cards = [Card(file, row) for file in files if all(key in (row := read_score(file)) for key in _NEEDED)]
    if not cards:
        raise RunError(f"{path}: holds no score cards; expected a run folder, a folder of scores, or one card's file")
    return {card.name: _checked(card) for card in cards}


def _checked(card: Card) -> Card:
    parts = [card.row[f"document_{name}"] for name in ("nats", "bytes", "tokens")]
    sound = all(isinstance(part, list) and len(part) == len(parts[0]) > 0 for part in parts)
    if not sound or not isinstance(card.row["conditions"], Mapping):
        raise RunError(f"{card.path}: its documents do not fit together, or it states no conditions; score again")
    if any(value is None for part in parts for value in part):
        raise RunError(f"{card.path}: a document has no finite score, so there is nothing to compare")
    if min(min(part) for part in parts[1:]) <= 0:
        raise RunError(f"{card.path}: a document has no bytes or no tokens; score again")
    return card


def _pairs(first: Mapping[str, Card], second: Mapping[str, Card], any_procedure: bool) -> list[tuple[Card, Card]]:
    """Choose what is compared with what."""
    common = [name for name in first if name in second]
    pairs = [
        (first[name], second[name]) for name in sorted(common, key=lambda name: (not name.startswith("test"), name))
    ]
    heads = (_headline(first), _headline(second))
    if (any_procedure or not common) and heads[0].name != heads[1].name:
        pairs.insert(0, heads)
    return pairs or [heads]


def _headline(cards: Mapping[str, Card]) -> Card:
    on_test = [card for card in cards.values() if card.row.get("split") == "test"]
    marked = [card for card in on_test if card.row.get("headline")]
    return (marked or on_test or list(cards.values()))[0]


def _difference(one: Card, two: Card, allowed: Mapping[str, tuple[Any, Any]], draws: int, seed: int) -> CardComparison:
    left, right = one.sample(draws, seed), two.sample(draws, seed)
    bits, bits_interval = right.above(left)
    paired = right.paired(left)
    nats: tuple[float, Interval] | tuple[None, None] = (None, None)
    if one.conditions.get("tokenizer_hash") == two.conditions.get("tokenizer_hash"):
        nats = two.sample(draws, seed, per_token=True).above(one.sample(draws, seed, per_token=True))
    return CardComparison(
        cards=(one.name, two.name),
        procedures=(left.procedure, right.procedure),
        exact=(left.exact, right.exact),
        bits_per_byte=(left.bits_per_byte, right.bits_per_byte),
        bits_difference=bits,
        bits_interval=bits_interval,
        nats_difference=nats[0],
        nats_interval=nats[1],
        documents=(len(left.bytes_D), len(right.bytes_D)),
        paired=paired,
        allowed=allowed,
        models=(one.model, two.model),
    )


def lines_of(comparisons: Sequence[CardComparison], first: str, second: str) -> list[str]:
    """Write comparisons for people.

    Args:
        comparisons: What `compare` found.
        first: Name of the first model.
        second: Name of the second model.

    Returns:
        Lines: for each card the numbers, their difference, what was allowed to differ, and what identifies the weights.
    """
    return [line for item in comparisons for line in _lines(item, first, second)]


def _lines(item: CardComparison, first: str, second: str) -> list[str]:
    card = item.cards[0] if item.cards[0] == item.cards[1] else " against ".join(item.cards)
    kinds = ["exact" if exact else "an upper bound" for exact in item.exact]
    shown = [
        f"{name} {bits:.4f} ({procedure}, {kind})"
        for name, bits, procedure, kind in zip((first, second), item.bits_per_byte, item.procedures, kinds, strict=True)
    ]
    over = f"{item.documents[0]} documents, paired" if item.paired else f"not paired, documents {item.documents}"
    lines = [f"{card}, bits per byte: {', '.join(shown)}", f"  {_verdict(item, first, second)}"]
    lines.append(f"  {second} - {first}: {_amount(item.bits_difference, item.bits_interval)} bits per byte")
    if item.nats_difference is not None and item.nats_interval is not None:
        lines[-1] += f", {_amount(item.nats_difference, item.nats_interval)} nats per token"
    else:
        lines[-1] += "; nats per token are not compared, because the tokenizers differ"
    lines[-1] += f" (95% over {over}; other seeds of the training are not in it)"
    if min(item.documents) < _FEW_DOCUMENTS:
        lines.append("  so few documents make the interval itself uncertain")
    lines += [f"  allowed to differ: {field}: {left} and {right}" for field, (left, right) in item.allowed.items()]
    lines += [
        f"  weights of {name}: {', '.join(f'{key}={value}' for key, value in model.items()) or _MISSING}"
        for name, model in zip((first, second), item.models, strict=True)
    ]
    return lines


def _amount(value: float, interval: Interval) -> str:
    return f"{value:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]"


def _verdict(item: CardComparison, first: str, second: str) -> str:
    if not item.apart:
        return "they cannot be told apart"
    better, index = (second, 1) if item.bits_difference < 0 else (first, 0)
    hedge = "" if item.exact[1 - index] else "; the other number is an upper bound, so this is not proven"
    return f"{better} is better by {abs(item.bits_difference):.4f} bits per byte{hedge}"
