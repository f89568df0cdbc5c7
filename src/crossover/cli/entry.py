"""Where the program begins: a mistake gets one message and its exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Any

import typer

from crossover.cli.options import app
from crossover.errors import CrossoverError

# What the machine may refuse, and what a person can do about it; every other OSError is a defect of the program.
_SPACE, _ACCESS, _PLACE = "free some space", "make it writable or name another folder", "name another folder"
_DISK, _LIMIT = "look after the disk or the network that it lies on", "raise the limit on the size of files (ulimit -f)"
MACHINE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _SPACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _ACCESS),
    **dict.fromkeys((errno.EIO, errno.ESTALE), _DISK),
    errno.EFBIG: _LIMIT,
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP), _PLACE),
}


def main() -> None:
    """Run the command line; a user's mistake prints one message and exits with 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # SIGTERM unwinds like Ctrl-C, so that the folder says `interrupted` and its lock is given back.
    signal.signal(signal.SIGTERM, _terminate)
    arguments = sys.argv[1:]
    command = typer.main.get_command(app)
    try:
        # Not `app()`: it turns an interruption into a return value and a closed pipe into a failure of its own.
        with command.make_context("crossover", list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except CrossoverError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        resumes = arguments[:1] in (["train"], ["study"], ["prepare"])
        goes_on = "; the same command goes on where it stopped" if resumes else ""
        print(f"\nstopped{goes_on}", file=sys.stderr)
        raise SystemExit(130) from None
    except typer.Exit as error:
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        # The reader of a pipe has left; there is nobody to tell, and the shell's code for that is SIGPIPE's.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{where}{error.strerror}; {MACHINE[error.errno]}, then give the same command again")
    except MemoryError:
        _fail("this needs more memory than there is; `crossover plan` says what a recipe takes")
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "format_message"):
            _refuse_usage(error)
        raise


def _terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _refuse_usage(error: Any) -> None:
    context, message = getattr(error, "ctx", None), error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        # Nothing was asked for: the answer is the help, not an error.
        print(message)
        raise SystemExit(2)
    _fail(f"{message.rstrip('.')}. See `{context.command_path} --help`." if context is not None else message)


def _fail(message: str) -> None:
    # What a stranger's file says may stand in it: nothing there steers a terminal.
    plain = "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in message)
    print(f"error: {plain}", file=sys.stderr)
    raise SystemExit(2)
