"""A process that has imported everything once and becomes a run by forking: a run begins in no time.

usage: python -m injected.server     (requests and answers are JSON lines on standard input and output)

    {"do": "start", "arguments": [...], "folder": DIR, "environment": {...}, "log": FILE, "fault": {...}} -> {"pid": N}
    {"do": "poll", "pid": N} and {"do": "wait", "pid": N} -> {"code": exit code, negative for a signal, null: it runs}

The child is a process of its own in every respect that a fault can touch: signals, limits, files, its lock, its end.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from injected.injection import install


def import_all() -> None:
    """Import what every run imports, which takes longer than a tiny run."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import crossover.cli
    import crossover.data.prepare
    import crossover.evidence.run
    import crossover.evidence.sinks.tee
    import crossover.training.train  # noqa: F401


def become(request: Mapping[str, Any]) -> None:
    """Be the command that was asked for, to its end; never returns."""
    from crossover import cli

    code = 1
    try:
        os.setsid()
        os.chdir(request["folder"])
        os.environ.update(request["environment"])
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Also where this script itself was started in the background of another, which ignores ^C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["crossover", *request["arguments"]]
        install(request["fault"])
        cli.main()
        code = 0
    except SystemExit as done:
        code = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
    import atexit

    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what is asked."""
    if request["do"] == "start":
        number = os.fork()
        if number == 0:
            become(request)
        return {"pid": number}
    found, status = os.waitpid(request["pid"], os.WNOHANG if request["do"] == "poll" else 0)
    return {"code": os.waitstatus_to_exitcode(status) if found else None}


def main() -> None:
    """Serve until standard input ends."""
    # Answers go where nothing else prints.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import_all()
    gc.freeze()
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
