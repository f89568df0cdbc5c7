"""Files that run code where they are unpickled or evaluated, and calls that must refuse them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossover.errors import CrossoverError

TRAP = "import pathlib; pathlib.Path('trapped').write_text('code ran')"


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (TRAP,)


def refused(call: Any, *names: object) -> str:
    """Give the message of a call that must be refused, and must run nothing."""
    with pytest.raises(CrossoverError) as error:
        call()
    message = str(error.value)
    assert all(str(name) in message for name in names), message
    assert len(message) < 3000
    assert not Path("trapped").exists(), "code of the file ran"
    return message
