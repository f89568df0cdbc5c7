"""Python sources of installed packages, filtered down to code that a person wrote and would recognise."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossover.errors import DataError

# Raised whenever the filter changes, so that text prepared under another filter is not taken for the same.
FILTER_VERSION = 1
_SKIPPED_FOLDERS = frozenset(
    name
    for names in (
        ("test", "tests", "idle_test", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "__pycache__"),
        ("site-packages", "dist-packages", "_vendor", "_vendored", "vendor", "vendored", "third_party"),
    )
    for name in names
)
_TEST_FILE = re.compile(r"(test_.*|.*_test|conftest)\.py")
_GENERATED = re.compile(rb"(?i)auto-?generated|generated (automatically|by|from|using)|do not edit|@generated")
_SMALLEST_BYTES, _LARGEST_BYTES = 400, 200_000


def library_folder() -> Path:
    """Find the running interpreter's standard library.

    Raises:
        DataError: This interpreter has no library folder with sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    if not (folder / "argparse.py").is_file():
        raise DataError(
            f"data.source: this interpreter (Python {platform.python_version()}) comes without the sources of its "
            "library; give text of your own: data.source=my_text/"
        )
    return folder


def package_folder(package: str) -> Path:
    """Find an installed package without importing it.

    Raises:
        DataError: The package is not installed as a folder of sources.
    """
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places or not Path(places[0]).is_dir():
        raise DataError(f"data.source: {package} is not installed with its sources; use data.source=stdlib")
    return Path(places[0])


def interpreter() -> dict[str, Any]:
    """Say which interpreter's library is read, and under which filter."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": sysconfig.get_platform(),
        "filter": FILTER_VERSION,
    }


def package_version(package: str) -> str:
    """Say which version of a package is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def python_sources(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Read the Python files of a folder that pass the filter, sorted by name.

    Args:
        folder: A library or package.

    Yields:
        Pairs of the name relative to the folder (with `/`) and the file's bytes, valid UTF-8.
    """
    for root, folders, names in os.walk(folder):
        # Sorting in place makes the walk itself deterministic.
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if not name.endswith(".py") or _TEST_FILE.fullmatch(name) or not path.is_file():
                continue
            if _SMALLEST_BYTES <= path.stat().st_size <= _LARGEST_BYTES:
                content = path.read_bytes()
                if is_good_code(content):
                    yield path.relative_to(folder).as_posix(), content


def is_good_code(content: bytes) -> bool:
    """Judge whether a file is Python that a person wrote.

    Args:
        content: The file's bytes.

    Returns:
        Whether it is UTF-8, not generated, not a table of data, and defines a function or class.
    """
    if _GENERATED.search(b"\n".join(content.splitlines()[:10])):
        return False
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    lines = text.splitlines()
    if not lines or len(text) > 70 * len(lines) or max(map(len, lines)) > 500:
        return False
    letters = sum(map(str.isalpha, text))
    digits = sum(map(str.isdigit, text))
    foreign = len(text) - sum(map(str.isascii, text))
    if letters <= 0.40 * len(text) or digits >= 0.15 * len(text) or foreign >= 0.02 * len(text):
        return False
    return _defines_something(content)


def _defines_something(content: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            # A library may warn about its own escapes; that is no concern of the person who reads it as text.
            warnings.simplefilter("ignore")
            tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in ast.walk(tree))
