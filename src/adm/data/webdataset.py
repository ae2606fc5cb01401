"""WebDataset shards: tar archives in which 0001.jpg and 0001.cls are an image and its label, read in place."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adm.data._file_tree import Read, check_size, file_stamp
from adm.data._label_table import CLASSES, Label, LabelTable
from adm.data._labelled_files import LabelledFiles
from adm.data._listing import IMAGE_SUFFIXES, Listing, is_hidden
from adm.data._open_file import OpenFile
from adm.data._tar import TarMember, tar_members
from adm.runtime.errors import DamagedError, DataError
from adm.runtime.text import one_line, shown_path

__all__ = ["WebDataset"]

MAX_SHARDS = 100_000
MAX_LABEL_BYTES = 1 << 20
JSON_KEYS = ("label", "cls", "class")
LABELS = ("cls", "json")
_GZIP = b"\x1f\x8b"
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}", re.ASCII)
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")


class WebDataset(LabelledFiles):
    """The images of shards such as `shards-{000..010}.tar` or `shards-*.tar`, by an index that is built once.

    A sample is the files of one shard that are equal up to the first dot of their name; it has one image. Its label is
    the text of its `.cls`, or "label", "cls" or "class" of its `.json`: numbers, or names of classes, ordered as names
    of folders are. A `classes.txt` beside the first shard gives names and their order. Without any label the images are
    unconditional. labels_from "none", "prefix" or a table overrides them; a table names files as `shard.tar/0001.jpg`.

    The rest is as `LabelledFiles` says. Raises DataError, UsageError or DamagedError.
    """

    def __init__(
        self,
        pattern: str,
        channels: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        labels_from: str | None = None,
        skip_bad: bool = False,
    ) -> None:
        tree = _Shards(pattern)
        own = _own_labels(tree) if labels_from is None else None
        super().__init__(tree, channels, progress, labels_from, skip_bad, own)


@dataclass(frozen=True, slots=True)
class _Place:
    shard: int
    member: TarMember


class _Shards:
    """What is in the shards, by names that begin with the shard's."""

    kind = "webdataset"
    only_images = False

    def __init__(self, pattern: str) -> None:
        self.path = Path(pattern)
        self.shards = _expanded(pattern)
        self._stamps = [file_stamp(shard) for shard in self.shards]
        self._identities: list[tuple[int, ...]] = []
        self.places: dict[str, _Place] = {}
        common = Path(os.path.commonpath([shard.parent.absolute() for shard in self.shards]))
        hidden = 0
        for number, shard in enumerate(self.shards):
            prefix = shard.absolute().relative_to(common).as_posix()
            with OpenFile(shard) as file:
                self._identities.append(file.identity)
                _refuse_compressed(file)
                for member in tar_members(file):
                    name = f"{prefix}/{member.name}"
                    if name in self.places:
                        twice = f"it holds {one_line(member.name, 60)!r} twice"
                        raise DamagedError(f"{shown_path(shard)} is refused: {twice}. Make it again.")
                    if any(map(is_hidden, member.name.split("/"))):
                        hidden += 1
                    else:
                        self.places[name] = _Place(number, member)
        self._classes = self.shards[0].parent / CLASSES
        top = [CLASSES] if self._classes.is_file() else []
        images = [name for name in self.places if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        self.listing = Listing(top, images, [], hidden)

    @contextmanager
    def opened(self) -> Iterator[Read]:
        def read(name: str) -> bytes:
            if name == CLASSES:
                return self._classes.read_bytes()
            place = self.places[name]
            check_size(place.member.size)
            with OpenFile(self.shards[place.shard], self._identities[place.shard]) as file:
                return file.read_at(place.member.offset, place.member.size)

        yield read

    def stamp(self, name: str) -> tuple[int, ...] | None:
        place = self.places.get(name)
        stamp = None if place is None else self._stamps[place.shard]
        return None if place is None or stamp is None else (*stamp, place.member.offset, place.member.size)


def _expanded(pattern: str) -> list[Path]:
    """The shards that a pattern with braces, * and ? means, in the order of their names."""
    texts = [pattern]
    while any(_NUMBERS.search(text) or _CHOICE.search(text) for text in texts):
        texts = list(itertools.islice(itertools.chain.from_iterable(map(_alternatives, texts)), MAX_SHARDS + 1))
        if len(texts) > MAX_SHARDS:
            raise DataError(f"webdataset {one_line(pattern, 80)!r} means more than {MAX_SHARDS} shards: name fewer")
    found: dict[Path, None] = {}
    for text in texts:
        matches = sorted(glob.glob(text)) if glob.has_magic(text) and not os.path.exists(text) else [text]
        found |= dict.fromkeys(map(Path, matches))
    missing = [path for path in found if not path.exists()]
    if missing or not found:
        what = f"{shown_path(missing[0])} does not exist" if missing else "no such file"
        raise DataError(f"webdataset {one_line(pattern, 80)!r}: {what}: give shards, such as shards-{{000..010}}.tar")
    return sorted(found)


def _alternatives(text: str) -> list[str]:
    """The text with its first pair of braces replaced by each of what it means."""
    match = _NUMBERS.search(text)
    if match is not None:
        first, last = match.groups()
        stop = min(int(last) + 1, int(first) + MAX_SHARDS + 1)
        words = [str(k).zfill(len(first)) for k in range(int(first), stop)]
    else:
        match = _CHOICE.search(text)
        if match is None:
            return [text]
        words = match[1].split(",")
    return [text[: match.start()] + word + text[match.end() :] for word in words]


def _refuse_compressed(file: OpenFile) -> None:
    if file.size >= 2 and file.read_at(0, 2) == _GZIP:
        raise DataError(f"{shown_path(file.path)} is compressed, and can only be read in order: gunzip it first")


def _own_labels(tree: _Shards) -> LabelTable | None:
    """The label of each image by the file beside it; None where no image has any."""
    beside: dict[str, dict[str, str]] = {}
    image_of: dict[str, str] = {}
    pictures = set(tree.listing.below)
    for name in tree.places:
        key, extension = _key(name)
        if name in pictures:
            other = image_of.setdefault(key, name)
            if other != name:
                both = f"{one_line(other, 50)!r} and {one_line(name, 50)!r}"
                raise DataError(
                    f"sample {one_line(key, 50)!r} has two images, {both}: leave one, or --labels-from none"
                )
        elif extension in LABELS:
            beside.setdefault(key, {})[extension] = name
    where = f"the labels in {shown_path(tree.path)}"
    with tree.opened() as read:
        for extension, value in (("cls", _text_label), ("json", _json_label)):
            rows: dict[str, Label] = {}
            for key, image in image_of.items():
                text = beside.get(key, {}).get(extension)
                rows[image] = None if text is None else value(tree, read, text)
            if any(label is not None for label in rows.values()):
                return LabelTable(where, rows)
    return None


def _key(name: str) -> tuple[str, str]:
    """A sample's key and the extension, lower case, which begins after the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _text_label(tree: _Shards, read: Read, name: str) -> Label:
    return _contents(tree, read, name).strip() or None


def _json_label(tree: _Shards, read: Read, name: str) -> Label:
    try:
        document = json.loads(_contents(tree, read, name))
    except (ValueError, RecursionError):
        raise DataError(f"{one_line(name, 60)!r} in {shown_path(tree.path)} is not valid JSON: make it again") from None
    if not isinstance(document, dict):
        document = {"label": document} if isinstance(document, int | str) and not isinstance(document, bool) else {}
    label = next((document[key] for key in JSON_KEYS if key in document), None)
    if isinstance(label, bool) or not isinstance(label, int | str | None):
        raise DataError(
            f"{one_line(name, 60)!r} in {shown_path(tree.path)} has the label {one_line(label, 40)}: write a number "
            "from 0 on, or the class's name"
        )
    return label.strip() or None if isinstance(label, str) else label


def _contents(tree: _Shards, read: Read, name: str) -> str:
    where = f"{one_line(name, 60)!r} in {shown_path(tree.path)}"
    if tree.places[name].member.size > MAX_LABEL_BYTES:
        raise DataError(f"{where} is too large for a label: leave it out, or --labels-from none")
    if tree.places[name].member.size == 0:
        return ""
    try:
        return read(name).decode()
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8: write the label as text") from None
