"""What the cards of two numbers may differ in, and how a comparison is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from crossover.errors import RunError, nearest


def is_allowed(field: str, allow: Sequence[str]) -> bool:
    """Say whether a field may differ: it or its group, such as "versions", was named."""
    return any(field == name or field.startswith(f"{name}.") for name in allow)


def check_allowed(allow: Sequence[str], fields: Iterable[str]) -> None:
    """Refuse names that are no fields of the cards.

    Args:
        allow: Fields that were said to be allowed to differ.
        fields: Fields that the cards have.

    Raises:
        RunError: A name is not among them.
    """
    known = dict.fromkeys(fields)
    for name in allow:
        if not any(is_allowed(field, [name]) for field in known):
            groups = {field.partition(".")[0] for field in known}
            raise RunError(f"--allow {name}: the cards have no such field; {nearest(name, {*known, *groups})}")


def refusal(first: Path | str, second: Path | str, refused: Mapping[tuple[str, str, str], Sequence[str]]) -> str:
    """Write why two models' numbers are not compared, and what would let them be.

    Args:
        first: The first model's place.
        second: The second model's.
        refused: Names of the cards that differ, by field and both values.

    Returns:
        The message.
    """
    lines = [
        f"  {field}: {left} in the first, {right} in the second ({', '.join(names)})"
        for (field, left, right), names in refused.items()
    ]
    fields = " ".join(f"--allow {field}" for field in dict.fromkeys(field for field, _, _ in refused))
    return (
        f"{first} and {second} cannot be compared; their cards differ in {len(lines)} thing(s) beside the weights:\n"
        + "\n".join(lines)
        + f"\nScore both alike, or say that it does not matter: {fields}"
    )
