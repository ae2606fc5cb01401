"""Weights in files of anybody: what ``torch.save`` wrote, in both of its formats, and safetensors.

Opening a file never runs anything in it. Pickles are read by a closed reader that imports nothing (``_pickle_reader``),
``torch.load`` is not used, and memory is taken only for bytes that the file has. In a zip of torch >= 1.6 the checksum
of each member is compared, so that a changed bit is noticed. The format before it, and safetensors, have none: what
protects these is a sha256 recorded elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adm.checkpoints._foreign_file import AGAIN, ForeignFile, RefusedError, refused_in
from adm.checkpoints._pickle_names import is_whole
from adm.checkpoints._safetensors_reader import looks_like_safetensors, read_safetensors
from adm.checkpoints._torch_legacy import MAGIC, read_legacy, read_pickle
from adm.checkpoints._torch_zip import read_zip
from adm.runtime.text import num_bytes, one_line

__all__ = ["read_state_dict", "read_torch_file"]

HEAD = 1 << 16
# What torch.nn.DataParallel, DistributedDataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")
MAX_SHARING = 2
SHOWN = 4
# What foreign files begin with, and what they are.
KNOWN = (
    (b"<", f"is a web page or XML, perhaps the message of a failed download; {AGAIN}"),
    (b"version https://git-lfs", "is a pointer of git-lfs in place of the file; run git lfs pull there"),
    (b"\x1f\x8b", "is a gzip archive; unpack it first"),
    (b"BZh", "is a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ", "is an xz archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive; unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it first"),
    (b"Rar!", "is a rar archive; unpack it first"),
    (b"\x93NUMPY", "is a numpy array, not weights; give a .pt or .safetensors file"),
    (b"\x89HDF", "is an HDF5 file, perhaps of Keras, not of torch; give a .pt or .safetensors file"),
    (b"\x89PNG", "is a picture; give a .pt or .safetensors file"),
    (b"\xff\xd8\xff", "is a picture; give a .pt or .safetensors file"),
    (b"GGUF", "is a GGUF file of a language model; give a .pt or .safetensors file"),
    (b"\x7fELF", "is a program, not weights; delete it"),
    (b"MZ", "is a program, not weights; delete it"),
)


def read_torch_file(path: str | Path) -> Any:
    """What was given to ``torch.save``: dicts, lists, tuples, numbers, text and tensors on the CPU.

    Equal to ``torch.load(path, map_location="cpu", weights_only=True)`` to the bit, except that parameters come as
    the tensors they are, no tensor requires a gradient, and the ``_metadata`` of a module's state dict is left out.
    Tensors that shared memory share it again. A .safetensors file gives its dict.

    Raises ``DataError`` if there is no such file, ``DamagedError`` for everything else than such contents: a file
    that asks for code, is cut short, compressed, changed or of another kind.
    """
    path = Path(path)
    with refused_in(path), ForeignFile(path) as file:
        return _content(file)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a .pt, .pth or .safetensors file: name -> tensor, on the CPU, in the dtypes of the file.

    A state dict that is the only one inside of {"state_dict": ..., "epoch": ...} is found there, whatever its name.
    A prefix "module." or "_orig_mod." that all names have is taken off. Raises as ``read_torch_file``, and
    ``DamagedError`` for contents that are no single state dict, in words that say what they are.
    """
    path = Path(path)
    with refused_in(path), ForeignFile(path) as file:
        tensors = _without_prefix(_only_state_dict(_content(file)))
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if total > MAX_SHARING * file.size:
            raise RefusedError(
                f"has tensors of {num_bytes(total)} in {num_bytes(file.size)}, the same numbers many times over; "
                "save clones of them, or check where it is from"
            )
        return tensors


# ---- what kind of file it is ----


def _content(file: ForeignFile) -> Any:
    head = file.read(0, min(HEAD, file.size))
    if not head:
        raise RefusedError(f"is empty; {AGAIN}")
    if head.startswith(b"PK"):
        return read_zip(file)
    if looks_like_safetensors(head):
        return read_safetensors(file)
    if head[:1] == b"\x80":
        return read_legacy(file) if MAGIC in head[:64] else read_pickle(file)
    if head[257:262] == b"ustar":
        raise RefusedError(
            "is a tar archive, of torch < 0.2 or of something else; unpack it, or save it again with a torch of today"
        )
    stripped = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for beginning, sentence in KNOWN:
        if stripped.startswith(beginning):
            raise RefusedError(sentence)
    if is_whole(head):
        return read_pickle(file)
    if not head.strip(b"\0"):
        raise RefusedError(f"begins with zeros, its download was perhaps never finished; {AGAIN}")
    kind = "text" if _is_text(head) else f"something that begins with {head[:4].hex(' ')}"
    raise RefusedError(f"is {kind}, no file of torch and no safetensors; {AGAIN}")


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", errors="replace")
    return sum(c.isprintable() or c.isspace() for c in text) > 0.95 * len(text) and "\ufffd" not in text[:-1]


# ---- which of its contents are weights ----


def _only_state_dict(content: Any) -> dict[str, Tensor]:
    """The contents, or the only state dict one level down."""
    if isinstance(content, Tensor):
        raise RefusedError("holds a single tensor without a name; save a state dict, name -> tensor")
    if not isinstance(content, Mapping):
        raise RefusedError(f"holds a {type(content).__name__}; save a state dict, name -> tensor")
    if not content:
        raise RefusedError("holds an empty dict; save the state dict of a model")
    if _is_state_dict(content):
        return dict(content)
    if _is_optimizer(content):
        groups = content["param_groups"]
        kind = "Adam" if groups and isinstance(groups[0], Mapping) and "betas" in groups[0] else "an optimizer"
        raise RefusedError(
            f"holds the state of {kind} (state, param_groups), not weights; give the model*.pt or ema_*.pt beside it"
        )
    inner = {name: value for name, value in content.items() if _is_state_dict(value)}
    if len(inner) == 1:
        return dict(next(iter(inner.values())))
    if inner:
        raise RefusedError(
            f"holds {len(inner)} state dicts ({_listed(inner)}); save the one you want in a file of its own"
        )
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    tensors = len(content) - len(others)
    if tensors and not others:
        raise RefusedError("has tensors whose names are numbers; save a state dict, name -> tensor")
    held = f"{tensors} tensors beside {_listed(others)}" if tensors else f"no tensors but {_listed(others)}"
    raise RefusedError(f"holds {held}; save the state dict alone with torch.save")


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _is_optimizer(content: Mapping[Any, Any]) -> bool:
    return {"state", "param_groups"} <= set(content) and isinstance(content["param_groups"], list)


def _listed(names: Iterable[Any]) -> str:
    names = list(names)
    shown = ", ".join(one_line(name, 30) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in (*PREFIXES, *PREFIXES):  # they come in either order
        if all(name.startswith(prefix) and name != prefix for name in tensors):
            tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    return tensors
