"""The command `adm`: finds the file of a command, reads its flags, runs it, and says in one line what went wrong.

A command is a file of this room without a leading underscore: it maps command words to dataclasses whose fields are
the flags and whose `run()` does the work; `shared` says that many processes share it, which others refuse. Files import
what is heavy inside `run`, so that `--help` is quick.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import adm.cli
from adm.cli._many import let_first_speak, refuse_many
from adm.cli._parsing import HelpShown, parse
from adm.cli._streams import lasting_streams
from adm.runtime import files
from adm.runtime.errors import AdmError, ResourceError, StoppedError, UsageError, is_out_of_memory
from adm.runtime.text import nearest, one_line

__all__ = ["commands", "main"]

USAGE = 2
UNEXPECTED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    with lasting_streams():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(words: list[str]) -> int:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = _show_warning
        try:
            code = _dispatch(words)
            sys.stdout.flush()
            return code
        except HelpShown:
            return 0
        except BrokenPipeError:  # whoever reads our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            let_first_speak()
            code, line = _explain(error)
            print(f"adm: {line if line.endswith(('.', '?', '!')) else line + '.'}", file=sys.stderr)
            return code


def commands() -> dict[str, type]:
    """Every command by its words, such as "train diffusion"."""
    found: dict[str, type] = {}
    for file in pkgutil.iter_modules(adm.cli.__path__):
        if not file.name.startswith("_") and file.name != "main":
            found |= importlib.import_module(f"adm.cli.{file.name}").COMMANDS
    return dict(sorted(found.items()))


def _dispatch(words: list[str]) -> int:
    known = commands()
    if not words:
        print(_overview(known))
        raise UsageError("which command? They are listed above.")
    if words[0] in ("-h", "--help", "help"):
        print(_overview(known))
        return 0
    if words[0] == "--version":
        print(f"adm {adm.__version__}")
        return 0
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in known:
            command = parse(known[name], name, words[length:])
            if not getattr(command, "shared", False):
                refuse_many(name)
            return int(command.run() or 0)
    group = {name: command for name, command in known.items() if name.split()[0] == words[0]}
    if not group:
        starts = [*known, *(name.split()[0] for name in known)]
        raise UsageError(
            f"there is no command {one_line(words[0], 40)!r}{nearest(words[0], starts)} Commands: {', '.join(known)}."
        )
    if words[1:2] in (["-h"], ["--help"]):
        print(_overview(group))
        return 0
    if words[1:] and not words[1].startswith("-"):
        raise UsageError(f"there is no command {one_line(' '.join(words[:2]), 40)!r}. Choose {' or '.join(group)}.")
    raise UsageError(f"{words[0]} what? Choose {' or '.join(group)}.")


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and line of whatever ended a command."""
    if isinstance(error, AdmError):
        return error.exit_code, one_line(error, 600)
    if isinstance(error, KeyboardInterrupt):
        return StoppedError.exit_code, "interrupted; run the same command again."
    if is_out_of_memory(error):
        return (
            ResourceError.exit_code,
            f"out of memory: {one_line(error, 120) or 'the system gave no more'}. Use a smaller batch.",
        )
    if isinstance(error, ValueError):
        return USAGE, one_line(error, 600)
    if isinstance(error, OSError) and error.errno is not None:
        known = files.explanation(error, "use", Path(os.fsdecode(error.filename or "the output")))
        return known.exit_code, str(known)
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(where.filename)}:{where.lineno}"
    return UNEXPECTED, (
        f"unexpected {type(error).__name__} in {place}: {one_line(error, 200)}. "
        "This is a fault of adm: run again with --debug and report what it prints."
    )


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: object, **__: object) -> None:
    """Ours are notes to the user; what libraries say to programmers is shown with --debug."""
    if Path(filename).is_relative_to(Path(adm.cli.__file__).parents[1]):
        print(f"adm: note: {one_line(message, 400)}", file=sys.stderr)


def _overview(known: Mapping[str, type]) -> str:
    width = max(map(len, known))
    lines = [f"  adm {name:<{width}}  {(command.__doc__ or '').splitlines()[0]}" for name, command in known.items()]
    return "\n".join(
        [
            "adm: diffusion models with classifier guidance (ADM). Each command explains its flags with --help.",
            "",
            *lines,
            "",
            "--debug shows where an error came from, --version the version.",
        ]
    )
