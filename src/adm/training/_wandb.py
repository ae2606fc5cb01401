"""Weights & Biases, for runs that ask for it (`loop.wandb`). Whatever it lacks is a note: the run goes on without.

It is an optional package with its own account and network; the run directory holds everything that is sent there.
"""

from __future__ import annotations

import os
import re
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adm.runtime import files
from adm.runtime.errors import AdmError
from adm.runtime.text import one_line, shown_path

__all__ = ["Sink", "open_sink"]

ID_FILE = "wandb.json"
INIT_SECONDS = 30
"""How long a network that does not answer may hold up the start of a run."""


class Sink:
    """A run of W&B that takes lines and pictures. The first thing that fails is a note and the last that is sent."""

    def __init__(self, module: Any, run: Any) -> None:
        self._module, self._run = module, run

    def log(self, line: Mapping[str, Any], step: int) -> None:
        """Scalars by name. Steps that a continued run does again stay as they were sent first."""
        self._attempt(lambda run: run.log(dict(line), step=step))

    def image(self, path: Path, step: int) -> None:
        """A picture file, under the name of its directory."""
        self._attempt(lambda run: run.log({path.parent.name: self._module.Image(str(path))}, step=step))

    def close(self) -> None:
        """Send what is left."""
        self._attempt(lambda run: run.finish())
        self._run = None

    def _attempt(self, send: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            send(self._run)
        except Exception as error:  # of a foreign package and a network: none may stop a run
            self._run = None
            note(f"Weights & Biases gets no more of this run ({described(error)}). The run goes on.")


def open_sink(out: Path, config: Mapping[str, Any], enabled: bool) -> Sink | None:
    """The W&B run of a run directory, begun or continued; None when not enabled or not to be had.

    Without an account on this machine, or without network, it writes under `out`/wandb for `wandb sync`. Project,
    entity and mode are those of the usual variables (WANDB_PROJECT, else "adm"; WANDB_MODE).
    """
    if not enabled:
        return None
    try:
        import wandb
    except ImportError as error:
        why = "is not installed" if error.name == "wandb" else f"cannot be imported ({described(error)})"
        note(f"Weights & Biases {why}; the run goes on without. pip install 'adm-diffusion[wandb]' adds it.")
        return None
    arguments: dict[str, Any] = {
        "dir": str(out),
        "id": run_id(out),
        "name": out.absolute().name,
        "project": os.environ.get("WANDB_PROJECT", "adm"),
        "config": dict(config),
        "resume": "allow",
        # Lines of the run are sent, not what is printed; the package's own words would end up among ours.
        "settings": {"console": "off", "silent": True, "init_timeout": INIT_SECONDS},
    }
    mode = os.environ.get("WANDB_MODE") or ("online" if has_account(wandb) else "offline")
    try:
        run = wandb.init(**arguments, mode=mode)
    except Exception as error:
        if mode != "online":
            note(f"Weights & Biases cannot start ({described(error)}). The run goes on without.")
            return None
        return offline(wandb, arguments, described(error))
    if mode == "offline":
        note(f"Weights & Biases is offline: wandb sync {shown_path(out / 'wandb' / 'offline-run-*')} sends the run.")
    return Sink(wandb, run)


def offline(wandb: Any, arguments: Mapping[str, Any], why: str) -> Sink | None:
    """The second attempt, which needs no network."""
    try:
        wandb.teardown()  # the first attempt still holds the id
        run = wandb.init(**arguments, mode="offline")
    except Exception as error:
        note(f"Weights & Biases cannot start ({described(error)}). The run goes on without.")
        return None
    place = shown_path(Path(arguments["dir"]) / "wandb" / "offline-run-*")
    note(f"Weights & Biases does not answer ({why}). Written for wandb sync {place} instead.")
    return Sink(wandb, run)


def run_id(out: Path) -> str:
    """What W&B knows the run directory by: made once, then read, so that the same run is continued."""
    path = out / ID_FILE
    if path.exists():
        try:
            document = files.read_json(path)
        except AdmError:
            document = None
        stored = document.get("id") if isinstance(document, Mapping) else None
        if isinstance(stored, str) and re.fullmatch("[A-Za-z0-9_-]{1,64}", stored):
            return stored
        note(f"{shown_path(path)} is damaged: this goes to a new run of Weights & Biases.")
    made = uuid.uuid4().hex[:12]
    files.write_json(path, {"id": made})
    return made


def has_account(wandb: Any) -> bool:
    """Whether a key is there, so that nobody is asked for one in the middle of a start."""
    try:
        wandb.setup(wandb.Settings(silent=True))
        return bool(wandb.login(prompt=False, verify=False))
    except Exception:
        return False


def described(error: Exception) -> str:
    return one_line(error, 120).rstrip(".") or type(error).__name__


def note(line: str) -> None:
    warnings.warn(line, stacklevel=2)
