"""Errors that are written for the person who made them happen."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What is listed of names that could have been written.
MOST_CHARACTERS = 2000


class CrossoverError(Exception):
    """Something a user can mend; the command line prints it without a traceback and exits with 2."""


class RecipeError(CrossoverError):
    """A recipe or study file, or a `key=value` on the command line, cannot be used."""


class DataError(CrossoverError):
    """A corpus, a tokenizer or a prepared shard cannot be used."""


class CheckpointError(CrossoverError):
    """A checkpoint or an exported model cannot be used."""


class RunError(CrossoverError):
    """A run folder cannot be used or a run cannot go on."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Say which valid choice a mistyped name is closest to, and list them all.

    Args:
        name: What was written.
        choices: What could have been written.

    Returns:
        A sentence fragment such as `did you mean 'masked'? (choices: autoregressive, masked)`.
    """
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    listed = ", ".join(known)
    # A stranger's file may have any number of names, of any length.
    return f"{hint}(choices: {listed if len(listed) <= MOST_CHARACTERS else listed[:MOST_CHARACTERS] + '...'})"
