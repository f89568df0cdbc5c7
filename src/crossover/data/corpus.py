"""Corpora: where text comes from. Each yields documents in an order of its own that is always the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from crossover.data.files import Document, file_at, list_files, read_documents
from crossover.data.opening import facts_of
from crossover.data.sources import (
    interpreter,
    library_folder,
    package_folder,
    package_version,
    python_sources,
)
from crossover.errors import DataError
from crossover.registry import register

__all__ = ["Corpus", "Document", "Files", "Installed", "StandardLibrary", "at_revision", "newest_of", "parts_of"]


class Corpus(Protocol):
    """What every corpus does."""

    def documents(self, document_bytes: int) -> Iterator[Document]:
        """Yield the documents in an order that is always the same.

        Args:
            document_bytes: Plain-text files longer than this are cut at blank lines, or else at line ends.

        Raises:
            DataError: The text is missing, empty or damaged.
        """
        ...

    def describe(self) -> str:
        """Name the corpus in a few words."""
        ...

    def signature(self) -> dict[str, Any]:
        """Identify the text cheaply (sizes, times, versions), without reading it."""
        ...


def parts_of(corpus: Corpus, document_bytes: int) -> Iterator[Iterator[Document]]:
    """Give a corpus's documents in parts that can be left out unread, such as files.

    Args:
        corpus: A corpus. Where it has a method `parts`, that gives them; where it has none, it is one part.
        document_bytes: Plain-text files longer than this are cut.

    Yields:
        Parts; their documents one after another are those of `documents`. A part that is not iterated is not read.
    """
    parts = getattr(corpus, "parts", None)
    yield from parts(document_bytes) if parts is not None else (corpus.documents(document_bytes),)


def newest_of(corpus: Corpus) -> str | None:
    """Ask for the revision that a corpus has now, if it lies where others may change it (a method `newest`)."""
    newest = getattr(corpus, "newest", None)
    return newest() if newest is not None else None


def at_revision(corpus: Corpus, revision: str | None) -> Corpus:
    """Give a corpus as it was at a revision that `newest_of` gave (a method `pinned`)."""
    pinned = getattr(corpus, "pinned", None)
    return pinned(revision) if pinned is not None else corpus


def _modules(folder: Path, prefix: str) -> Iterator[Document]:
    # Modules stay whole: pieces of one module on both sides of a split would make held-out text easier than it is.
    for name, content in python_sources(folder):
        yield Document(f"{prefix}{name}", content.decode("utf-8"))


@register("corpus", "stdlib")
@dataclass(frozen=True)
class StandardLibrary:
    """The running interpreter's own standard library, filtered: real code, on every machine, with no network."""

    def documents(self, document_bytes: int) -> Iterator[Document]:
        """Yield the library's modules, sorted by name and whole, whatever `document_bytes` says.

        Raises:
            DataError: This interpreter comes without sources.
        """
        yield from _modules(library_folder(), "")

    def describe(self) -> str:
        """Name the library and its version."""
        return f"Python {interpreter()['python']} standard library"

    def signature(self) -> dict[str, Any]:
        """Identify the library by the interpreter's version; the text differs between patch releases."""
        return {"corpus": "stdlib", **interpreter()}


@register("corpus", "installed")
@dataclass(frozen=True)
class Installed:
    """The standard library and the installed packages that Crossover itself needs: torch and numpy."""

    def documents(self, document_bytes: int) -> Iterator[Document]:
        """Yield the modules of the library, then of each package, sorted by name; nothing is imported.

        Raises:
            DataError: The interpreter or a package comes without sources.
        """
        yield from _modules(library_folder(), "")
        for package in _PACKAGES:
            yield from _modules(package_folder(package), f"{package}/")

    def describe(self) -> str:
        """Name the library, the packages and their versions."""
        packages = ", ".join(f"{package} {package_version(package)}" for package in _PACKAGES)
        return f"Python {interpreter()['python']} standard library, {packages}"

    def signature(self) -> dict[str, Any]:
        """Identify the text by the versions of all that is read."""
        versions = {package: package_version(package) for package in _PACKAGES}
        return {"corpus": "installed", **interpreter(), **versions}


_PACKAGES = ("numpy", "torch")


@register("corpus", "files")
@dataclass(frozen=True)
class Files:
    """Text of your own: one file, or all the text files in a folder.

    Args:
        path: A file or folder; plain text, JSON lines or parquet, told by the suffix.
    """

    path: str

    def documents(self, document_bytes: int) -> Iterator[Document]:
        """Yield the documents of each file, files sorted by name.

        Raises:
            DataError: The path is missing or empty, or a file in it is damaged or holds no text.
        """
        empty = True
        for part in self.parts(document_bytes):
            for document in part:
                empty = False
                yield document
        if empty:
            raise DataError(f"{self.path}: holds no text; every document in it is blank")

    def parts(self, document_bytes: int) -> Iterator[Iterator[Document]]:
        """Give the documents file by file."""
        root = self._root()
        for name in list_files(root):
            yield read_documents(file_at(root, name), name, document_bytes)

    def describe(self) -> str:
        """Name the path as it was given."""
        return f"files in {self.path}" if self._root().is_dir() else self.path

    def signature(self) -> dict[str, Any]:
        """Identify the text by the relative name, size and time of change of each file.

        Raises:
            DataError: There is nothing at the path, or nothing of a known format.
        """
        listing = hashlib.sha256()
        root = self._root()
        found = list_files(root)
        total = 0
        for name in found:
            facts = facts_of(file_at(root, name))
            total += facts.st_size
            listing.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return {"corpus": "files", "files": len(found), "stored_bytes": total, "listing": listing.hexdigest()[:16]}

    def _root(self) -> Path:
        return Path(self.path).expanduser()
