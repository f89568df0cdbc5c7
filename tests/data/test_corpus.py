"""Corpora: the same documents every time, and a sentence about whatever is wrong with a file."""

import gzip
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.data import sources
from crossover.data.corpus import Document, Files, Installed, StandardLibrary
from crossover.data.files import pieces
from crossover.errors import DataError
from crossover.registry import component_of

ENGLISH = Path(__file__).parents[3] / "shared" / "data" / "english"


def read(path: Path, document_bytes: int = 20_000) -> list[Document]:
    return list(Files(str(path)).documents(document_bytes))


def texts(path: Path, document_bytes: int = 20_000) -> list[str]:
    return [document.text for document in read(path, document_bytes)]


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        read(path)
    assert all(part in str(caught.value) for part in (path.name, *parts)), str(caught.value)


def rows(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@given(st.text(alphabet="ab \n\ré日\U0001f600"), st.integers(1, 40))
def test_pieces_together_are_the_text_and_none_is_too_long(text: str, size: int) -> None:
    found = list(pieces(io.BytesIO(text.encode()), size))
    assert b"".join(piece for _, piece in found) == text.encode()
    assert [offset for offset, _ in found] == [sum(len(b) for _, b in found[:index]) for index in range(len(found))]
    for _, piece in found:
        piece.decode("utf-8")
        # Only a single character may be longer than a document.
        assert len(piece) <= size or len(piece.decode()) == 1


def test_text_is_cut_at_blank_lines_then_line_ends_then_spaces(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\nthree\n\nfour\n")
    assert texts(path, 15) == ["one\n\n", "two\nthree\n\n", "four\n"]
    path.write_text("one\ntwo\nthree\n")
    assert texts(path, 10) == ["one\ntwo\n", "three\n"]
    path.write_text("one two three")
    assert texts(path, 10) == ["one two ", "three"]
    assert [document.name for document in read(path, 10)] == ["a.txt", "a.txt#1"]


def test_a_long_file_is_cut_the_same_however_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    text = "".join(f"line {number} é\n" + "\n" * (number % 7 == 0) for number in range(120_000))
    path.write_text(text)
    found = texts(path, 5000)
    assert "".join(found) == text
    assert max(len(piece.encode()) for piece in found) <= 5000
    assert all(piece.endswith("\n\n") for piece in found[:-1])


def test_every_format_gives_its_text_in_sorted_order(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "no.txt").write_text("hidden")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "g.txt").write_bytes(b"\xef\xbb\xbftxt")
    (tmp_path / "deep" / "b.md").write_text("md")
    (tmp_path / "c.train").write_text("train")
    (tmp_path / "d.py").write_text("py")
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"txt.gz"))
    (tmp_path / "h.jsonl").write_bytes(b"\n" + rows({"text": "jsonl\n"}, {"text": "  "}, {"text": "second", "id": 1}))
    (tmp_path / "i.jsonl.gz").write_bytes(gzip.compress(rows({"text": "jsonl.gz"})))
    frames = zstandard.ZstdCompressor().compress(rows({"text": "zst"})) * 2
    (tmp_path / "j.jsonl.zst").write_bytes(frames)
    parquet.write_table(arrow.table({"text": ["p1", "p2"], "other": [1, 2]}), tmp_path / "k.parquet")
    found = {document.name: document.text for document in read(tmp_path)}
    assert list(found.values()) == [
        *("train", "py", "md", "txt.gz", "txt", "jsonl\n", "second", "jsonl.gz", "zst", "zst", "p1", "p2")
    ]
    assert list(found)[5:7] == ["h.jsonl:2", "h.jsonl:4"]
    assert read(tmp_path) == read(tmp_path)


def test_a_missing_path_and_an_unknown_suffix_say_what_is_possible(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such file or folder")
    (tmp_path / "a.doc").write_text("x")
    refused(tmp_path / "a.doc", ".jsonl.zst", ".parquet", ".train")
    refused(tmp_path, "holds no text files", ".jsonl.gz")


def test_text_that_is_blank_or_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\n")
    refused(tmp_path / "a.txt", "holds no text")
    (tmp_path / "b.txt").write_bytes(b"fine\n\n" * 5000 + b"caf\xe9 x")
    refused(tmp_path / "b.txt", "byte 30003", "UTF-8")
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    refused(tmp_path / "c.jsonl", "line 2", "byte 10", "UTF-8")


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (b'{"text": "a"', "is not JSON"),
        (b'{"body": "a", "id": 3}', "expected an object with a 'text' field, found fields body, id"),
        (b'["text"]', "found list"),
        (b'{"text": null}', "must be a string, not null"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": 1' + b"0" * 5000 + b"}", "JSON"),
    ],
)
def test_a_bad_line_of_json_is_named_with_its_number(tmp_path: Path, second: bytes, complaint: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(rows({"text": "a"}) + second + b"\n")
    refused(path, "line 2", complaint)


def test_truncated_and_damaged_compressed_files_are_found(tmp_path: Path) -> None:
    content = rows(*({"text": os.urandom(50).hex()} for _ in range(2000)))
    for name in ("a.jsonl.gz", "b.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(content)[:-3000])
        refused(tmp_path / name, "ends too early")
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, "damaged or not compressed")
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(content)[:-3000])
    refused(tmp_path / "c.jsonl.zst", "ends too early")
    (tmp_path / "c.jsonl.zst").write_bytes(content)
    refused(tmp_path / "c.jsonl.zst", "damaged or not compressed")


def test_a_compressed_file_without_a_byte_is_a_torn_one(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.zst", "c.txt.gz"):
        (tmp_path / name).touch()
        refused(tmp_path / name, "is empty", "truncated download")


def test_a_window_that_is_too_large_is_no_damage(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    writer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(writer.compress(rows({"text": "a"})) + writer.flush())
    refused(tmp_path / "a.jsonl.zst", "compressed with --long", "uncompress it")


def test_a_folder_that_cannot_be_listed_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.txt", "b/c.txt"):
        (tmp_path / name).write_text("text")
    scandir = os.scandir

    def scanning(path: str) -> Any:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scanning)
    refused(tmp_path, "b: cannot be listed: Permission denied")


def test_parquet_without_text_is_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": ["a"]}), path)
    refused(path, "expected a column 'text', found body")
    parquet.write_table(arrow.table({"text": ["a", None]}), path)
    refused(path, "row 2", "null")
    path.write_bytes(b"PAR1 nonsense")
    refused(path, "not a parquet file")


def test_a_missing_library_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (("zstandard", "a.jsonl.zst"), ("pyarrow.parquet", "b.parquet")):
        monkeypatch.setitem(sys.modules, module, None)
        (tmp_path / name).write_bytes(b"x")
        refused(tmp_path / name, "pip install 'crossover-lm[data]'")


def test_signature_follows_the_files_and_not_where_they_lie(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("same")
        os.utime(tmp_path / folder / "x.txt", ns=(1, 1))
    first = Files(str(tmp_path / "a")).signature()
    assert first == Files(str(tmp_path / "b")).signature()
    os.utime(tmp_path / "b" / "x.txt", ns=(1, 2))
    assert first != Files(str(tmp_path / "b")).signature()
    (tmp_path / "a" / "y.txt").write_text("more")
    assert first != Files(str(tmp_path / "a")).signature()


def test_a_path_in_a_recipe_means_files() -> None:
    assert component_of("corpus", "my_text/") == Files("my_text/")
    assert component_of("corpus", "stdlib") == StandardLibrary()


def test_the_standard_library_is_read_filtered_sorted_and_the_same_each_time() -> None:
    found = list(StandardLibrary().documents(20_000))
    names = [document.name.split("#")[0] for document in found]
    assert found[:50] == list(itertools.islice(StandardLibrary().documents(20_000), 50))
    assert {"argparse.py", "asyncio/base_events.py"} <= set(names)
    assert not {"test", "tests", "lib2to3", "site-packages"} & {part for name in names for part in name.split("/")}
    # Whole modules, or pieces of one would stand on both sides of a split.
    assert len(set(names)) == len(names) and max(len(document.text.encode()) for document in found) > 100_000
    assert sum(len(document.text.encode()) for document in found) > 3_000_000
    assert "standard library" in StandardLibrary().describe()


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("def double(value):\n    return value + value\n", True),
        ("names = ['one', 'two']\n", False),
        ("# Generated by a tool\ndef f():\n    pass\n", False),
        ("def broken(:\n    pass\n", False),
        ("def f():\n    return '" + "a" * 600 + "'\n" + "    pass\n" * 60, False),
        ("def f():\n    return 12345678901234567890\n", False),
        ("def f():\n    return 'ééééééééé'\n", False),
        ("def f():\n    return '\\d'  # an escape of which Python warns\n", True),
    ],
)
def test_only_code_that_a_person_wrote_is_kept(text: str, good: bool) -> None:
    assert sources.is_good_code(text.encode()) is good


def test_an_interpreter_without_sources_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda name: str(tmp_path / "python.zip"))
    with pytest.raises(DataError, match=r"without the sources.*data\.source=my_text/"):
        list(StandardLibrary().documents(20_000))


def test_installed_packages_are_read_without_being_imported() -> None:
    code = (
        "import sys, itertools\n"
        "from crossover.data import corpus, loader, prepare, tokenizer\n"
        "from crossover.data.sources import package_folder\n"
        "print(package_folder('torch').name, corpus.Installed().describe(), 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("torch Python")
    assert done.stdout.strip().endswith("False")
    assert {"numpy", "torch"} <= set(Installed().signature())


@pytest.mark.skipif(not ENGLISH.is_dir(), reason="needs shared/data/english beside the repository")
def test_real_files_are_read_whole() -> None:
    documents = read(ENGLISH / "dev.jsonl.gz")
    assert len(documents) == 991
    assert sum(len(document.text.split()) for document in documents) > 900_000
    shakespeare = texts(ENGLISH / "tinyshakespeare")
    assert "".join(shakespeare) == gzip.decompress((ENGLISH / "tinyshakespeare" / "input.txt.gz").read_bytes()).decode()
