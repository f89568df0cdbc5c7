"""What all commands share: the program itself, arguments that several take, and how a line is said.

Nothing heavy is imported at the top of this package, so that `--help` answers at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from crossover.errors import RunError

# Commands as they are used one after the other; those of others come after these.
ORDER = (
    "doctor", "prepare", "plan", "adopt", "train", "study", "watch", "report", "eval", "sample", "export", "crossing",
    "scaling",
)  # fmt: skip


class InOrder(TyperGroup):
    """The program, its commands listed in the order of their use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    cls=InOrder,
    help="Train the best language model that a limited text allows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipePath = Annotated[Path, typer.Argument(help="A recipe file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that come last: dotted.key=value ...", show_default=False)
]
Trust = Annotated[bool, typer.Option("--trust", help="Let the recipe's `imports` run their code.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, or a model folder.", show_default=False)]


class SettingsCommand(TyperCommand):
    """A command whose options may be written as `key=value` too, as settings of recipes are."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Turn `key=value` into `--key=value`, except where it is the value of the option before it."""
        flags = [param.opts for param in self.params if getattr(param, "is_flag", False)]
        bare = {name for names in flags for name in names} | {"--help"}
        read: list[str] = []
        for before, arg in zip(["", *args], args, strict=False):
            is_value = before.startswith("--") and "=" not in before and before not in bare
            read.append(f"--{arg}" if not is_value and re.match("[a-z][a-z_-]*=", arg) else arg)
        return super().parse_args(ctx, read)


def say(message: str) -> None:
    """Print a line at once."""
    print(message, flush=True)


def model_folder(path: Path) -> Path:
    """Find the model that a run left.

    Args:
        path: A run folder or a model folder.

    Returns:
        The model folder.

    Raises:
        RunError: There is none.
    """
    for folder in (path / "model", path):
        if (folder / "config.json").exists():
            return folder
    if not path.is_dir():
        raise RunError(f"{path}: no such folder; expected a run folder or a model folder")
    raise RunError(f"{path}: holds no finished model; `crossover train` leaves one in <run>/model")
