"""A report that is served live while runs go on: on this machine only, and without a trace in the folders watched."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crossover.errors import CrossoverError, RunError
from crossover.evidence.files import dumps
from crossover.evidence.page.render import Live, render_problem
from crossover.evidence.page.words import encodable
from crossover.evidence.record import read_recipe
from crossover.evidence.report import Report, build_report
from crossover.evidence.view import run_folders
from crossover.folders import is_locked

HOST = "127.0.0.1"
# What a report reads of a run folder besides the files in it; weights and checkpoints are large and say nothing.
READ_OF_A_RUN = ("scores", "samples")
# What a report reads of a study folder besides its runs and the files in it.
READ_OF_A_STUDY = ("tune",)
# What a browser is told of each part of a report.
KINDS = {".json": "application/json", ".md": "text/markdown", ".svg": "image/svg+xml", ".csv": "text/csv"}
# Rendering takes this share of the time at most, so that a large study is not slowed down by being watched.
RENDERING_SHARE = 0.2
Fingerprint = frozenset[tuple[str, int, int]]


@dataclass(frozen=True)
class Snapshot:
    """What is served at a moment.

    Args:
        version: Another one for every rendering, also of another server on the same port.
        files: Content type and content by path.
    """

    version: str
    files: Mapping[str, tuple[str, bytes]]


class Watch:
    """Renders a folder's report again when its files have changed, in memory.

    Args:
        folder: A study's or a run's folder.
        every_seconds: Least time between two looks at it.

    Raises:
        RunError: The folder is neither.
    """

    def __init__(self, folder: str | Path, *, every_seconds: float = 3.0) -> None:
        self.folder, self.every_seconds = Path(folder), every_seconds
        if not (self.folder / "study.yaml").exists():
            read_recipe(self.folder)
        self._script = files("crossover.evidence.page").joinpath("live.js").read_text("utf-8")
        self._name, self._count = secrets.token_hex(4), 0
        self._report: Report | None = None
        self._seen: Fingerprint | None = None
        self._problem = ""
        self.seconds = 0.0
        self.snapshot = Snapshot("", {})
        self.refresh()

    @property
    def policy(self) -> str:
        """What the browser is told of the page: our own script by its hash, news from here, and nothing else."""
        digest = base64.b64encode(hashlib.sha256(self._script.encode()).digest()).decode()
        return (
            f"default-src 'none'; script-src 'sha256-{digest}'; connect-src 'self'; style-src 'unsafe-inline'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def refresh(self) -> bool:
        """Render again if a file has changed; what cannot be rendered is told above the last page that could.

        Returns:
            Whether there is a new version.
        """
        began = time.monotonic()
        try:
            seen = fingerprint(self.folder)
            if seen == self._seen:
                return False
            report = build_report(self.folder)
            snapshot = self._rendered(report)
        except Exception as error:
            # Files change while they are read, and hold what nobody foresaw: a watch that ends of it is of no use.
            told = str(error) if isinstance(error, CrossoverError) else f"{type(error).__name__}: {error}"
            return self._troubled(encodable(told), began)
        self._report, self._seen, self._problem, self.snapshot = report, seen, "", snapshot
        self.seconds = time.monotonic() - began
        return True

    def _troubled(self, problem: str, began: float) -> bool:
        # The next look tries again, whether a file has changed by then or not.
        self._seen = None
        news = problem != self._problem
        if news and self._report is not None:
            self.snapshot = self._rendered(self._report, problem)
        elif news:
            live = self._live(problem)
            page = ("text/html", render_problem(encodable(self.folder.name), live).encode())
            self.snapshot = Snapshot(live.version, {"/": page, "/version": _version(live)})
        self._problem = problem
        self.seconds = time.monotonic() - began
        return news

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next look: the longer, the longer the last rendering took."""
        return max(self.every_seconds, self.seconds * (1 / RENDERING_SHARE - 1))

    def _live(self, problem: str = "") -> Live:
        self._count += 1
        return Live(self._script, f"{self._name}-{self._count}", self.every_seconds, problem)

    def _rendered(self, report: Report, problem: str = "") -> Snapshot:
        live = self._live(problem)
        texts = report.texts(live)
        held = {"/": ("text/html", texts.pop("report.html").encode()), "/version": _version(live)}
        for path, text in texts.items():
            held[f"/{path}"] = KINDS[Path(path).suffix], text.encode()
        return Snapshot(live.version, held)


def _version(live: Live) -> tuple[str, bytes]:
    return "application/json", dumps({"version": live.version}).encode()


def fingerprint(folder: Path) -> Fingerprint:
    """Say how the files that a report reads stand, and who is writing.

    Args:
        folder: A study's or a run's folder.

    Returns:
        Path, time of change and size of each file, and a mark for each run that a process is writing.

    Raises:
        RunError: The study's file is broken.
    """
    runs = run_folders(folder)
    places = [folder, *(folder / name for name in READ_OF_A_STUDY)]
    places += [place for run in runs for place in (run, *(run / name for name in READ_OF_A_RUN))]
    found = {(f"{run}/.lock", int(is_locked(run)), 0) for run in runs}
    return frozenset(found.union(*map(_files_of, dict.fromkeys(places))))


def _files_of(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Give the files right in a folder, through links; one that is not there yet has none."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            # Our own report beside the runs says nothing new; a hidden file is one that is being written.
            if entry.name.startswith((".", "report.")) or entry.name == "log.txt":
                continue
            with suppress(OSError):
                if entry.is_file():
                    facts = entry.stat()
                    yield entry.path, facts.st_mtime_ns, facts.st_size


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, watch: Watch) -> None:
        super().__init__((HOST, port), _Answers)
        self.watch = watch

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away or fell silent; that is no error of anybody."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


@dataclass
class _Page:
    kind: str = "text/plain"
    body: bytes = b""
    status: HTTPStatus = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)


class _Answers(BaseHTTPRequestHandler):
    # Nothing is looked up on a disk: what is not in the snapshot is not there, whatever a path says.
    server_version, sys_version = "crossover", ""
    timeout = 20

    @property
    def _watch(self) -> Watch:
        assert isinstance(self.server, _Server)
        return self.server.watch

    def do_GET(self) -> None:
        self._answer(self._page())

    def do_HEAD(self) -> None:
        self._answer(self._page())

    def _refuse(self) -> None:
        allowed = _Page(body=b"only GET\n", status=HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})
        self._answer(allowed)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _page(self) -> _Page:
        port = self.connection.getsockname()[1]
        # A page of a stranger whose name was turned to this address would bring that name along.
        if (self.headers.get("Host") or "").lower() not in (f"{HOST}:{port}", f"localhost:{port}"):
            return _Page(body=b"this page is served to this machine only\n", status=HTTPStatus.FORBIDDEN)
        try:
            held = self._watch.snapshot.files.get(urlsplit(self.path).path)
        except ValueError:
            # Such as `http://[`, which is no address at all.
            held = None
        if held is None:
            return _Page(body=b"there is nothing here\n", status=HTTPStatus.NOT_FOUND)
        return _Page(*held)

    def _answer(self, page: _Page) -> None:
        self.send_response(page.status)
        told = {
            "Content-Type": f"{page.kind}; charset=utf-8",
            "Content-Length": str(len(page.body)),
            "Content-Security-Policy": self._watch.policy,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        for key, text in {**told, **page.headers}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal belongs to whoever watches."""


@contextmanager
def serving(watch: Watch, port: int = 0) -> Iterator[str]:
    """Serve a watch on this machine, and look for changes, as long as the block lasts.

    Args:
        watch: What is served.
        port: The port, 0 for any that is free.

    Yields:
        The address of the page.

    Raises:
        RunError: The port cannot be had.
    """
    server = _listen(port, watch)
    stopped = threading.Event()

    def look() -> None:
        # One look at a time: a page that takes long to render delays the next one, and none waits behind it.
        while not stopped.wait(watch.pause_seconds):
            # Not even the page that tells of trouble could be made, as when the package is being replaced: look again.
            with suppress(Exception):
                watch.refresh()

    threads = [threading.Thread(target=work, daemon=True) for work in (lambda: server.serve_forever(0.1), look)]
    for thread in threads:
        thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/"
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        threads[0].join()


def _listen(port: int, watch: Watch) -> _Server:
    try:
        return _Server(port, watch)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "may not be opened by you"
        raise RunError(f"port {port} of {HOST} {why}; choose another with --port, or --port 0 for a free one") from None


def watch_folder(
    folder: str | Path, *, port: int, every_seconds: float, notify: Callable[[str], None], browser: bool
) -> None:
    """Serve a folder's report until Ctrl-C.

    Args:
        folder: A study's or a run's folder.
        port: The port on 127.0.0.1, 0 for any that is free.
        every_seconds: Least time between two looks at the folder.
        notify: Where lines for people go.
        browser: Whether to open the page, where there is a desktop.

    Raises:
        RunError: The folder is neither, or the port cannot be had.
    """
    try:
        watch = Watch(folder, every_seconds=every_seconds)
        with serving(watch, port) as address:
            notify(f"watching {folder} at {address} (this machine only; Ctrl-C ends it)")
            if browser:
                _open(address)
            threading.Event().wait()
    except KeyboardInterrupt:
        notify(f"stopped watching {folder}; nothing was written to it")


def _open(address: str) -> None:
    """Open the page where that opens a window; a browser for terminals would take this one over."""
    import webbrowser

    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)
