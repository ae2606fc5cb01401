"""The released checkpoints: their files, state dicts and flags, as ours and back."""

import pickle
import zipfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from adm.checkpoints.openai_flags import Spec, read_flags, write_flags
from adm.checkpoints.openai_keys import is_classifier, to_openai, to_ours
from adm.runtime.errors import DamagedError, DataError
from adm.runtime.text import one_line, shown_path

__all__ = ["Spec", "is_classifier", "read_flags", "read_pt", "to_openai", "to_ours", "write_flags"]

# What torch.load raises for content that is not what it writes.
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


def read_pt(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a .pt file, on the CPU, half precision as float32; nothing in the file is executed.

    Raises DataError if there is no such file, and DamagedError if it is not a zip that torch wrote, if the
    checksum of a member is wrong, or if it holds anything but a flat dict of tensors.
    """
    path = Path(path)
    where = shown_path(path)
    if not path.is_file():
        raise DataError(f"{where}: no such file; give the path of a .pt file")
    check_zip(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise DamagedError(
            f"{where}: holds something else than tensors, which may be code and is not loaded; "
            "save its state dict alone with torch.save"
        ) from error
    if not isinstance(content, dict) or not content:
        raise DamagedError(
            f"{where}: holds {'nothing' if content == {} else type(content).__name__}; "
            "save a state dict, name -> tensor, with torch.save"
        )
    wrong = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if wrong:
        raise DamagedError(
            f"{where}: {len(wrong)} entries are no tensors, the first is {one_line(wrong[0])}; "
            "save the state dict inside alone with torch.save"
        )
    halves = (torch.float16, torch.bfloat16)
    return {name: value.float() if value.dtype in halves else value for name, value in content.items()}


def check_zip(path: Path) -> None:
    """Refuses a file that is cut short or changed: torch writes a zip with a checksum of each member."""
    where = shown_path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise DamagedError(
            f"{where}: is cut short, or no file of torch >= 1.6 ({one_line(error).lower()}); fetch it again"
        ) from error
    if bad is not None:
        raise DamagedError(f"{where}: the checksum of {one_line(bad)} is wrong, the file was changed; fetch it again")
