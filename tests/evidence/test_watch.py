from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crossover.errors import RunError
from crossover.evidence import watch as watch_module
from crossover.evidence.page.render import Live
from crossover.evidence.report import Report
from crossover.evidence.run import RunFolder
from crossover.evidence.watch import Watch, fingerprint, serving
from evidence.synthetic import AUTOREGRESSIVE, MASKED, recipe_of, write_run, write_study

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("watched") / "run")


@pytest.fixture(scope="module")
def port(run: Path) -> Iterator[int]:
    with serving(Watch(run, every_seconds=60.0)) as address:
        yield int(address.rstrip("/").rpartition(":")[2])


def ask(port: int, path: str, *, host: str | None = None, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host if host is not None else f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {key.lower(): text for key, text in answer.getheaders()}, body


def test_it_serves_the_page_and_what_the_page_links_to(port: int) -> None:
    status, told, body = ask(port, "/")
    page = body.decode()
    assert status == 200 and told["content-type"] == "text/html; charset=utf-8" and 'class="verdict"' in page
    links = [link for link in re.findall(r'href="([^"#]+)"', page) if not link.startswith("data:")]
    assert len(links) >= 6
    for link in links:
        assert ask(port, "/" + link.lstrip("/"))[0] == 200, link
    version = json.loads(ask(port, "/version")[2])["version"]
    assert f'data-version="{version}"' in page
    assert ask(port, "/version", host=f"localhost:{port}")[0] == 200


def test_the_browser_is_told_to_run_our_script_alone_and_to_ask_nobody_else(port: int) -> None:
    for path in ("/", "/version", "/report/loss-against-compute.svg", "/nothing"):
        _, told, _ = ask(port, path)
        policy = dict(part.strip().split(" ", 1) for part in told["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]+'", policy["script-src"])
        assert told["x-content-type-options"] == "nosniff" and told["cache-control"] == "no-store"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:{other}", ""])
def test_a_stranger_whose_name_points_here_is_refused(port: int, host: str) -> None:
    status, _, body = ask(port, "/", host=host.format(port=port, other=port + 1))
    assert status == 403 and b"this machine only" in body and b"verdict" not in body


@pytest.mark.parametrize("path", [
    "/../recipe.yaml", "/report/../recipe.yaml", "/report/%2e%2e/recipe.yaml", "/recipe.yaml", "//etc/passwd",
    "/report/", "/report", "/steps.jsonl", "/report/..%2frecipe.yaml", "/.lock",
])  # fmt: skip
def test_nothing_else_of_the_disk_is_served(port: int, path: str) -> None:
    assert ask(port, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_reading_is_answered(port: int, method: str) -> None:
    status, told, _ = ask(port, "/", method=method)
    assert status == 405 and told["allow"] == "GET, HEAD"
    assert ask(port, "/", method="HEAD")[2] == b""


def test_it_listens_on_this_machine_only(port: int) -> None:
    others = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for address in {str(other) for other in others} - {"127.0.0.1"}:
        with pytest.raises(OSError), socket.create_connection((address, port), timeout=1):
            pass


def test_a_port_in_use_is_named(run: Path, port: int) -> None:
    told = rf"port {port} of 127.0.0.1 is in use; choose another with --port"
    with pytest.raises(RunError, match=told), serving(Watch(run), port):
        pass


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        Watch(tmp_path)


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_watching_writes_nothing_and_sees_each_change_once(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", {"plain": {"finished": False}}, seeds=[0])
    before = everything(folder)
    watched = Watch(folder)
    first = watched.snapshot
    assert everything(folder) == before
    assert not watched.refresh() and watched.snapshot is first
    for unread in ("report.html", "log.txt", ".status.json.1.tmp", "logs/run.log", "plain/seed-0/checkpoints/a.bin"):
        (folder / unread).parent.mkdir(exist_ok=True)
        (folder / unread).write_text("x")
    assert not watched.refresh(), "what no report reads is no change"
    with open(folder / "plain" / "seed-0" / "evals.jsonl", "a") as file:
        file.write('{"step": 6, "torn": ')
    assert watched.refresh() and watched.snapshot.version != first.version
    assert b"older than the folder" not in watched.snapshot.files["/"][1], "a torn last line is no mistake"


def test_a_run_that_has_only_begun_and_a_study_that_has_not_have_a_page(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", terminal=False).create(recipe_of("run", 0, AUTOREGRESSIVE)):
        page = Watch(tmp_path / "run").snapshot.files["/"][1].decode()
    assert "No verdict yet: 0 of 1 run has finished." in page and "<td>running</td>" in page
    folder = write_study(tmp_path / "study", {"plain": {}, "masked": {"controller": MASKED}}, seeds=[])
    (folder / "study.yaml").write_text((folder / "study.yaml").read_text().replace("seeds: []", "seeds: [0]"))
    page = Watch(folder).snapshot.files["/"][1].decode()
    assert "0 of 2 runs have finished" in page and "not begun" in page


def test_a_folder_that_cannot_be_read_keeps_its_last_page_and_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    watched = Watch(run)
    sound = (run / "ledger.json").read_text()
    (run / "ledger.json").write_text("{<b>")
    assert watched.refresh()
    page = watched.snapshot.files["/"][1].decode()
    assert "older than the folder" in page and "ledger.json" in page and "reaches" in page and "{<b>" not in page
    assert not watched.refresh(), "the same trouble is told once"
    (run / "ledger.json").write_text(sound)
    assert watched.refresh() and b"older than the folder" not in watched.snapshot.files["/"][1]


def test_a_folder_that_cannot_be_read_from_the_start_has_a_page_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "manifest.json").write_text("[]")
    watched = Watch(run)
    page = watched.snapshot.files["/"][1].decode()
    assert "Nothing could be read yet." in page and "expected a JSON object" in page
    assert f'data-version="{watched.snapshot.version}"' in page and 'id="told"' in page
    (run / "manifest.json").write_text("{}")
    assert watched.refresh() and 'class="verdict"' in watched.snapshot.files["/"][1].decode()
    assert "/report.json" in watched.snapshot.files


def test_values_that_nobody_foresaw_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", handover_epoch=8.0)
    decisions = (run / "decisions.jsonl").read_text()
    (run / "decisions.jsonl").write_text(decisions.replace("the plan changes", "\\ud800 <b>"))
    assert "\\ud800 <b>" in (run / "decisions.jsonl").read_text()
    ledger = json.loads((run / "ledger.json").read_text())
    (run / "ledger.json").write_text(json.dumps({**ledger, "unique_tokens": 1.5}))
    watched = Watch(run)
    page = watched.snapshot.files["/"][1].decode()
    assert "older than the folder" not in page and "? &lt;b&gt;" in page and ">1.5<" in page
    for odd in ({"data_tokens": 10**400}, {"exposures": {"masked": "many"}}, {"exposures": "x"}, {"seconds": [1]}):
        (run / "ledger.json").write_text(json.dumps({**ledger, **odd}))
        assert watched.refresh() and b"Loss against" in watched.snapshot.files["/"][1], odd


def test_a_rendering_that_fails_keeps_the_last_page_and_the_looks_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    watched = Watch(run, every_seconds=0.05)
    watched.seconds = 0.0
    sound, failing = Report.texts, [True]

    def texts(self: Report, live: Live | None = None) -> dict[str, str]:
        # The last good report still renders, or there would be nothing to tell the trouble on.
        if failing and live is not None and not live.problem:
            raise TypeError("\ud800 of <b>")
        return sound(self, live)

    monkeypatch.setattr(Report, "texts", texts)
    last = watched.snapshot.version
    with serving(watched):
        (run / "ledger.json").write_text(json.dumps({**json.loads((run / "ledger.json").read_text()), "epochs": 21.0}))
        await_(lambda: watched.snapshot.version != last)
        page = watched.snapshot.files["/"][1].decode()
        assert "older than the folder: TypeError: ? of &lt;b&gt;" in page and "Loss against" in page
        assert f'data-version="{watched.snapshot.version}"' in page, "the browser would not see it"
        failing.clear()
        await_(lambda: b"older than the folder" not in watched.snapshot.files["/"][1])


def await_(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < until, "it did not happen within ten seconds"
        time.sleep(0.02)


def test_a_rendering_that_fails_at_the_start_has_a_page_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def texts(self: Report, live: Live | None = None) -> dict[str, str]:
        raise TypeError("\ud800 of <b>")

    monkeypatch.setattr(Report, "texts", texts)
    watched = Watch(run)
    assert set(watched.snapshot.files) == {"/", "/version"}
    assert "TypeError: ? of &lt;b&gt;" in watched.snapshot.files["/"][1].decode()
    assert not watched.refresh(), "the same trouble is told once"


def test_what_browsers_do_is_no_news_for_the_terminal(port: int, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for target in ("http://[", "//["):
        assert ask(port, target)[0] == 404
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port)) as closed:
            closed.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            # A reset and no farewell, as when a page is left while it loads.
            closed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    time.sleep(0.3)
    assert capfd.readouterr().err == ""
    server = watch_module._Server(0, Watch(run))
    try:
        raise ZeroDivisionError("a mistake of ours")
    except ZeroDivisionError:
        server.handle_error(None, ("127.0.0.1", 1))
    server.server_close()
    assert "a mistake of ours" in capfd.readouterr().err


def test_runs_are_seen_wherever_the_study_has_them(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study", {"plain": {}, "logs": {}}, seeds=[0])
    definition = (folder / "study.yaml").read_text()
    (folder / "study.yaml").write_text(definition + "budgets: [5.0e+8]\n")
    branch = write_run(folder / "plain" / "budget-5e+08" / "seed-0")
    (folder / "plain").rename(tmp_path / "elsewhere")
    (folder / "plain").symlink_to(tmp_path / "elsewhere")
    for place in (folder / "plain" / "seed-0", folder / "logs" / "seed-0", branch):
        for name in ("evals.jsonl", "scores/dev-ar.json", "samples/new.json"):
            before = fingerprint(folder)
            assert fingerprint(folder) == before
            (place / name).parent.mkdir(exist_ok=True)
            with open(place / name, "a") as file:
                file.write("\n")
            assert fingerprint(folder) != before, place / name
    before = fingerprint(folder)
    (folder / "tune").mkdir()
    (folder / "tune" / "chosen.json").write_text("{}")
    assert fingerprint(folder) != before


def test_a_process_that_ends_without_a_word_is_a_change(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", terminal=False).create(recipe_of("run", 0, AUTOREGRESSIVE))
    before = fingerprint(tmp_path / "run")
    assert fingerprint(tmp_path / "run") == before
    folder._release()
    assert fingerprint(tmp_path / "run") != before


def test_a_page_that_takes_long_is_rendered_less_often(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = []

    def slow(folder: Path) -> object:
        running.append(1)
        assert len(running) == 1, "two renderings at a time"
        time.sleep(0.2)
        running.pop()
        raise RunError(f"after {time.monotonic()}")

    monkeypatch.setattr(watch_module, "build_report", slow)
    watched = Watch(run, every_seconds=0.05)
    assert watched.pause_seconds >= 4 * 0.2
    with serving(watched):
        time.sleep(0.3)
    assert watched.snapshot.version.endswith("-1"), "the first look comes after the pause"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_with_one_line(run: Path, number: signal.Signals) -> None:
    if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("these tests were started with SIGINT ignored (a script's `&`), which processes inherit")
    code = "from crossover.cli import main; main()"
    command = [sys.executable, "-c", code, "watch", str(run), "--port", "0", "--no-browser"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as it:
        assert it.stdout is not None and it.stderr is not None
        first = it.stdout.readline()
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/", first)[0])
        assert ask(port, "/version")[0] == 200
        it.send_signal(number)
        try:
            rest, errors = it.communicate(timeout=20)
        finally:
            it.kill()
    assert it.returncode == 0 and errors == ""
    assert rest == f"stopped watching {run}; nothing was written to it\n"
