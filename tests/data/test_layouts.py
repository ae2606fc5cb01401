"""Layouts of labelled images: each gives exactly this table of labels, or exactly this line.

Every layout is tried as a folder and, where an archive can hold it, as a zip archive of the same files.
"""

import io
import json
import os
import socket
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from adm.data import open_dataset
from adm.runtime.errors import AdmError

NFC, NFD = "caf\u00e9", "cafe\u0301"
FOLDER_ONLY = "folder"


def png(level):
    stream = io.BytesIO()
    Image.new("L", (3, 2), level).save(stream, format="PNG")
    return stream.getvalue()


@dataclass
class Layout:
    """files: names of images (each with a grey level of its own), or by name the contents, None for a folder, or
    ("->", target) for a link. labels: by file, or the line that refuses it. notes: those that are there, as begun."""

    id: str
    files: list | dict
    names: tuple = ()
    labels: dict = field(default_factory=dict)
    refused: str | None = None
    labels_from: str | None = None
    skip_bad: bool = False
    notes: tuple = ()
    only: str | None = None
    table: str | bytes | None = None

    def contents(self):
        if isinstance(self.files, list):
            return {name: png(level) for level, name in enumerate(self.files)}
        return {
            name: png(level) if content is True else content.encode() if isinstance(content, str) else content
            for level, (name, content) in enumerate(self.files.items())
        }


def in_order(names, *files):
    """Files in the order of their classes: one file in each."""
    return dict(names=tuple(names), labels={file: k for k, file in enumerate(files)})


def of(number, *files):
    return dict.fromkeys(files, number)


AB = {"a/x.png": 0, "b/x.png": 1}
FLAT = {"x.png": True, "y.png": True}
NO_LABELS = of(-1, "x.png", "y.png")
LOOK_ALIKE = "differ only in case, blanks or invisible characters: rename or merge them, or name both in classes.txt "
LOOK_ALIKE += "if they are two"
MEND = "repair or remove, or leave out with skip_bad=True"

FOLDERS = [
    Layout("two classes", ["b/x.png", "a/x.png"], ("a", "b"), AB),
    Layout("no classes", ["y.png", "x.png"], (), NO_LABELS),
    Layout("numbers are ordered as text", ["2/x.png", "10/x.png"], **in_order(["10", "2"], "10/x.png", "2/x.png"),
           notes=("class names are numbers but ordered as text: label 0 is '10', 1 is '2'",)),
    Layout("a folder that is called as no label is", ["-1/x.png", "a/x.png"],
           **in_order(["-1", "a"], "-1/x.png", "a/x.png")),
    Layout("the first number that is not in order", ["1/x.png", "10/x.png", "2/x.png"],
           **in_order(["1", "10", "2"], "1/x.png", "10/x.png", "2/x.png"),
           notes=("class names are numbers but ordered as text: label 1 is '10', 2 is '2'",)),
    Layout("numbers with zeros count", ["2/x.png", "0/x.png", "1/x.png"],
           **in_order("012", "0/x.png", "1/x.png", "2/x.png")),
    Layout("capitals come first", ["Zoo/x.png", "ant/x.png"], **in_order(["Zoo", "ant"], "Zoo/x.png", "ant/x.png")),
    Layout("code points, not a language", ["z/x.png", "\u00e4/x.png"],
           **in_order(["z", "\u00e4"], "z/x.png", "\u00e4/x.png")),
    Layout("a decomposed name is its composed one", [f"{NFD}/x.png", "d/x.png"],
           **in_order([NFC, "d"], f"{NFD}/x.png", "d/x.png")),
    Layout("composed and decomposed", [f"{NFC}/x.png", f"{NFD}/x.png"],
           refused=r"class folders 'cafe\u0301' and 'caf\xe9' in 'data' are the same name in Unicode NFC: "
           "rename or merge them"),
    Layout("case", ["cat/x.png", "Cat/x.png"],
           refused=f"classes 'Cat' and 'cat' of folders of data {LOOK_ALIKE}"),
    Layout("case beyond ASCII", ["stra\u00dfe/x.png", "STRASSE/x.png"],
           refused=rf"classes 'STRASSE' and 'stra\xdfe' of folders of data {LOOK_ALIKE}"),
    Layout("a blank at the end", ["cat/x.png", "cat /x.png"],
           refused=f"classes 'cat' and 'cat ' of folders of data {LOOK_ALIKE}"),
    Layout("an invisible character", ["cat/x.png", "c\u200bat/x.png"],
           refused=rf"classes 'cat' and 'c\u200bat' of folders of data {LOOK_ALIKE}"),
    Layout("a heart, and the same in colour", ["\u2764/x.png", "\u2764\ufe0f/x.png"],
           refused=rf"classes '\u2764' and '\u2764\ufe0f' of folders of data {LOOK_ALIKE}"),
    Layout("case, declared", {"a/x.png": True, "A/x.png": True, "classes.txt": "A\na\n"},
           **in_order("Aa", "A/x.png", "a/x.png")),
    Layout("a blank at the end alone", ["cat /x.png", "dog/x.png"],
           **in_order(["cat ", "dog"], "cat /x.png", "dog/x.png")),
    Layout("emoji", ["\U0001f436/x.png", "\U0001f431/x.png"],
           **in_order("\U0001f431\U0001f436", "\U0001f431/x.png", "\U0001f436/x.png")),
    Layout("right to left", ["\u05e9\u05dc\u05d5\u05dd/x.png", "\u0645\u0631\u062d\u0628\u0627/x.png"],
           **in_order(["\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631\u062d\u0628\u0627"],
                      "\u05e9\u05dc\u05d5\u05dd/x.png", "\u0645\u0631\u062d\u0628\u0627/x.png")),
    Layout("a newline, a quote and a comma", ["a\nb/x.png", 'a"b/x.png', "a,b/x.png"],
           **in_order(["a\nb", 'a"b', "a,b"], "a\nb/x.png", 'a"b/x.png', "a,b/x.png")),
    Layout("an empty class keeps its label", {"a/x.png": True, "b": None, "c/x.png": True}, ("a", "b", "c"),
           {"a/x.png": 0, "c/x.png": 2}, notes=("class 'b' has no images; it keeps its label 1",)),
    Layout("a class of other files", {"a/x.png": True, "b/readme.md": "-", "c/x.png": True}, ("a", "b", "c"),
           {"a/x.png": 0, "c/x.png": 2},
           notes=("class 'b' has no images; it keeps its label 1", "1 files skipped that are hidden or no")),
    Layout("images at any depth", ["a/x.png", "a/1/x.png", "a/1/2/x.png", "b/a/x.png"], ("a", "b"),
           of(0, "a/x.png", "a/1/x.png", "a/1/2/x.png") | of(1, "b/a/x.png")),
    Layout("images beside classes", ["a/x.png", "b/x.png", "loose.png"],
           refused="data 'data' has images at its top ('loose.png') beside class folders ('a', 'b'): put every image "
           "into a class folder, or all into one folder without any"),
    Layout("other files beside classes", {"a/x.png": True, "b/x.png": True, "readme.md": "-"}, ("a", "b"), AB,
           notes=("1 files skipped",)),
    Layout("hidden files and folders",
           {"a/x.png": True, "b/x.png": True, "a/.x.png": True, "a/._x.png": b"-", ".git/x.png": True,
            "__MACOSX/a/x.png": b"-", "Thumbs.db": b"-", "a/desktop.ini": b"-", ".DS_Store": b"-"}, ("a", "b"), AB,
           notes=("7 files skipped",)),
    Layout("one class", ["a/x.png", "a/y.png"], ("a",), of(0, "a/x.png", "a/y.png"), only=FOLDER_ONLY),
    Layout("the archive of one folder is that folder", ["a/x.png", "a/y.png"], (), NO_LABELS, only="zip"),
    Layout("an enclosing folder", ["pets/b/x.png", "pets/a/x.png"], ("a", "b"), AB, only="zip"),
    Layout("nothing", {}, refused="no images in 'data': give a folder with PNG, JPEG, WEBP or BMP files"),
    Layout("classes of nothing", {"a": None, "b": None},
           refused="no images in 'data': give a folder with PNG, JPEG, WEBP or BMP files"),
    Layout("other files only", {"a.txt": "-", "b.txt": "-"},
           refused="no images in 'data', only 2 other files: give a folder with PNG, JPEG, WEBP or BMP files"),
    Layout("an empty file", {"a/x.png": True, "b/x.png": b""},
           refused="1 unreadable image of 2 in 'data': 'b/x.png' (empty file): " + MEND),
    Layout("text called .png", {"a/x.png": True, "b/x.png": "<html>", "b/y.jpg": "oid sha256:0"},
           refused="2 unreadable images of 3 in 'data': 'b/x.png' (not a PNG, JPEG, WEBP or BMP); 'b/y.jpg' (not a "
           "PNG, JPEG, WEBP or BMP): " + MEND),
    Layout("bad images left out", {"a/x.png": True, "b/x.png": True, "b/y.jpg": "<html>"}, ("a", "b"), AB,
           skip_bad=True,
           notes=("1 unreadable image is left out (33 %): 'b/y.jpg' (not a PNG, JPEG, WEBP or BMP)",)),
    Layout("a class of bad images", {"a/x.png": True, "b/y.jpg": "<html>", "c/x.png": True}, ("a", "b", "c"),
           {"a/x.png": 0, "c/x.png": 2}, skip_bad=True,
           notes=("class 'b' has no images; it keeps its label 1", "1 unreadable image is left out (33 %)")),
    Layout("nothing but bad images", {"a/x.png": "<html>"}, skip_bad=True,
           refused="no images in 'data', only 1 other files: give a folder with PNG, JPEG, WEBP or BMP files"),
    Layout("twins in one class", {"a/x.png": png(7), "a/y.png": png(7), "b/x.png": png(8)}, ("a", "b"),
           AB | {"a/y.png": 0}, notes=("1 images are copies of others, such as 'a/x.png' and 'a/y.png'",)),
    Layout("twins in two classes", {"a/x.png": png(7), "b/x.png": png(7)}, ("a", "b"), AB,
           notes=("1 images are copies of others, 1 of them under another label, such as 'a/x.png' and 'b/x.png'",)),
]  # fmt: skip

LINKS = [
    Layout("a link to a file within", {"a/x.png": True, "b/x.png": ("->", "../a/x.png")}, ("a", "b"), AB,
           notes=("1 images are copies of others, 1 of them under another label",)),
    Layout("a link to a file outside", {"a/x.png": True, "b/x.png": ("->", "../../outside.png")},
           refused="1 unreadable image of 2 in 'data': 'b/x.png' (a link that leads outside): " + MEND),
    Layout("a link to nothing", {"a/x.png": True, "b/x.png": ("->", "gone.png")},
           refused="1 unreadable image of 2 in 'data': 'b/x.png' (a link that leads nowhere): " + MEND),
    Layout("a link to itself", {"a/x.png": True, "b/x.png": ("->", "x.png")},
           refused="1 unreadable image of 2 in 'data': 'b/x.png' (a link that leads nowhere): " + MEND),
    Layout("a circle of folders", {"a/x.png": True, "b/x.png": True, "b/up": ("->", "..")},
           refused="1 unreadable image of 3 in 'data': 'b/up' (a link to a folder): " + MEND),
    Layout("a link as class folder", {"a/x.png": True, "b": ("->", "a")},
           refused="1 unreadable image of 1 in 'data': 'b' (a link to a folder): repair or remove"),
    Layout("a hard link", {"a/x.png": True, "b/x.png": ("=", "a/x.png")}, ("a", "b"), AB,
           notes=("1 images are copies of others, 1 of them under another label",)),
    Layout("a pipe", {"a/x.png": True, "b/x.png": "fifo"},
           refused="1 unreadable image of 2 in 'data': 'b/x.png' (not a regular file): " + MEND),
    Layout("a socket", {"a/x.png": True, "b/x.png": "socket"},
           refused="1 unreadable image of 2 in 'data': 'b/x.png' (not a regular file): " + MEND),
]  # fmt: skip

ORDERS = [
    Layout("classes.txt gives the order", {"a/x.png": True, "b/x.png": True, "classes.txt": "b\na\n"}, ("b", "a"),
           {"b/x.png": 0, "a/x.png": 1}),
    Layout("classes.txt from Windows", {"a/x.png": True, "b/x.png": True, "classes.txt": "\ufeffb\r\na\r\n\r\n"},
           ("b", "a"), {"b/x.png": 0, "a/x.png": 1}),
    Layout("classes.txt of numbers", {"2/x.png": True, "10/x.png": True, "classes.txt": "2\n10"}, ("2", "10"),
           {"2/x.png": 0, "10/x.png": 1}),
    Layout("classes.txt with one more", {"a/x.png": True, "b/x.png": True, "classes.txt": "a\nnone\nb"},
           ("a", "none", "b"), {"a/x.png": 0, "b/x.png": 2},
           notes=("class 'none' has no images; it keeps its label 1",)),
    Layout("classes.txt in the other composition", {f"{NFD}/x.png": True, "d/x.png": True, "classes.txt": f"d\n{NFC}"},
           ("d", NFC), {"d/x.png": 0, f"{NFD}/x.png": 1}),
    Layout("classes.txt lacks one", {"a/x.png": True, "b/x.png": True, "classes.txt": "a\n"},
           refused="classes.txt in data does not name 1 of the classes ('b'): add or rename them"),
    Layout("classes.txt has one twice", {"a/x.png": True, "b/x.png": True, "classes.txt": f"a\n{NFC}\nb\n{NFD}\n"},
           refused="classes.txt in data names 'caf\u00e9' on the lines 2 and 4: remove one"),
    Layout("classes.txt with a gap", {"a/x.png": True, "classes.txt": "a\n\nb\n"},
           refused="classes.txt in data, line 2 is empty: write one class on each line"),
    Layout("classes.txt without a name", {"a/x.png": True, "b/x.png": True, "classes.txt": "\n"},
           refused="classes.txt in data names no class: write one on each line, or remove it"),
    Layout("classes.txt in Latin-1", {"a/x.png": True, "b/x.png": True, "classes.txt": b"caf\xe9"},
           refused="classes.txt in data is not UTF-8: save it so"),
]  # fmt: skip

PREFIXES = [
    Layout("prefixes", ["dog_1.png", "cat_1.png", "cat_2.png"], ("cat", "dog"),
           of(0, "cat_1.png", "cat_2.png") | of(1, "dog_1.png"), labels_from="prefix"),
    Layout("a prefix that is called as no label is", ["-1_x.png", "a_x.png"],
           **in_order(["-1", "a"], "-1_x.png", "a_x.png"), labels_from="prefix"),
    Layout("prefixes whatever the folder", ["x/dog_1.png", "y/cat_1_a.png"], ("cat", "dog"),
           {"y/cat_1_a.png": 0, "x/dog_1.png": 1}, labels_from="prefix"),
    Layout("prefixes that are numbers", ["2_x.png", "10_x.png"], ("10", "2"), {"10_x.png": 0, "2_x.png": 1},
           labels_from="prefix", notes=("class names are numbers but ordered as text",)),
    Layout("prefixes with blanks and dots", ["a b.c_1.png", "\u00e9_1.png"], ("a b.c", "\u00e9"),
           {"a b.c_1.png": 0, "\u00e9_1.png": 1}, labels_from="prefix"),
    Layout("no prefix", ["cat_1.png", "dog.png", "emu.png"], labels_from="prefix",
           refused="2 of 3 file names in data have no class before an underscore, such as 'dog.png': rename them "
           "(cat_1.png), or use another --labels-from"),
    Layout("an empty prefix", ["cat_1.png", "_2.png"], labels_from="prefix",
           refused="1 of 2 file names in data have no class before an underscore, such as '_2.png': rename them "
           "(cat_1.png), or use another --labels-from"),
    Layout("prefixes in two cases", ["cat_1.png", "Cat_2.png"], labels_from="prefix",
           refused=f"classes 'Cat' and 'cat' of file names in data {LOOK_ALIKE}"),
    Layout("prefixes that nobody asked for", ["cat_1.png", "cat_2.png", "dog_1.png", "dog_2.png"], (),
           of(-1, "cat_1.png", "cat_2.png", "dog_1.png", "dog_2.png"),
           notes=("no classes, but 2 prefixes of file names (cat_, dog_...): classes by --labels-from prefix",)),
]  # fmt: skip

OTHERS = [
    Layout("no labels wanted", ["a/x.png", "b/x.png", "y.png"], (), of(-1, "a/x.png", "b/x.png", "y.png"),
           labels_from="none"),
    Layout("folders wanted, though a table is there",
           {"a/x.png": True, "b/x.png": True, "labels.csv": "file,label\na/x.png,1\nb/x.png,0\n"}, ("a", "b"), AB,
           labels_from="folders"),
    Layout("folders wanted where there are none", ["x.png"], labels_from="folders",
           refused="data 'data' has no class folders: put images into some, or use another --labels-from"),
    Layout("a source of another name", ["x.png"], labels_from="prefixes",
           refused="--labels-from 'prefixes' is none of the sources; did you mean 'prefix'?: use one of folders, "
           "prefix, none, or a .csv or .json file"),
    Layout("a table that is not there", ["x.png"], labels_from="t.csv",
           refused="--labels-from 't.csv': no such file, here or in data 'data': check the path"),
]  # fmt: skip


def table(id, text, names=(), labels=NO_LABELS, refused=None, files=FLAT, name="labels.csv", **more):
    return Layout(id, {**files, name: text}, names, labels if refused is None else {}, refused, **more)


AT_TOP = [
    table("numbers", "file,label\nx.png,1\ny.png,0\n", ("0", "1"), {"y.png": 0, "x.png": 1}),
    table("names", "file,label\nx.png,dog\ny.png,cat\n", ("cat", "dog"), {"y.png": 0, "x.png": 1}),
    table("a table wins over folders", "file,label\na/x.png,1\nb/x.png,0\n", ("0", "1"), {"b/x.png": 0, "a/x.png": 1},
          files={"a/x.png": True, "b/x.png": True}),
    table("from Windows, quoted, in other columns",
          '\ufefflabel, width,file\r\n"a, ""b""",3,"x.png"\r\nc,4,y.png\r\n\r\n', ('a, "b"', "c"),
          {"x.png": 0, "y.png": 1}),
    table("numbers with names", "file,label\nx.png,1\ny.png,0\n", ("cat", "dog"), {"y.png": 0, "x.png": 1},
          files={**FLAT, "classes.txt": "cat\ndog\n"}),
    table("numbers that are names", "file,label\nx.png,10\ny.png,2\n", ("2", "10"), {"y.png": 0, "x.png": 1},
          files={**FLAT, "classes.txt": "2\n10\n"}),
    table("a number beyond the names", "file,label\nx.png,2\ny.png,0\n",
          refused="labels.csv in data gives 'x.png' the label 2, not 0..1 as classes.txt in data names 2 classes: "
          "correct it", files={**FLAT, "classes.txt": "cat\ndog\n"}),
    table("a name beyond the names", "file,label\nx.png,emu\ny.png,cat\n",
          refused="classes.txt in data does not name 1 of the classes ('emu'): add or rename them",
          files={**FLAT, "classes.txt": "cat\ndog\n"}),
    table("numbers with a gap", "file,label\nx.png,3\ny.png,0\n", ("0", "1", "2", "3"), {"y.png": 0, "x.png": 3},
          notes=("class '1' has no images; it keeps its label 1", "class '2' has no images; it keeps its label 2")),
    table("no label at all", "file,label\nx.png,-1\ny.png,\n"),
    table("a label missing", "file,label\nx.png,-1\ny.png,0\n",
          refused="labels.csv in data gives 1 of 2 images no label, such as 'x.png': label all of them, or none"),
    table("a negative label", "file,label\nx.png,-2\ny.png,0\n",
          refused="labels.csv in data gives 'x.png' the label -2, not 0..99999: correct it"),
    table("an absurd label", "file,label\nx.png,100000\ny.png,0\n",
          refused="labels.csv in data gives 'x.png' the label 100000, not 0..99999: correct it"),
    table("a label of more digits than a number has", f"file,label\nx.png,{'1' * 5000}\ny.png,0\n",
          refused="labels.csv in data gives 'x.png' the label 111111111111111\u202611111111111111, not 0..99999: "
          "correct it"),
    table("fractions as pandas writes numbers", "file,label\nx.png,10.0\ny.png,2.0\n", ("10.0", "2.0"),
          {"x.png": 0, "y.png": 1},
          notes=("class names are numbers but ordered as text: label 0 is '10.0', 1 is '2.0'",)),
    table("names in two cases", "file,label\nx.png,Cat\ny.png,cat\n",
          refused=f"classes 'Cat' and 'cat' of labels.csv in data {LOOK_ALIKE}"),
    table("names in two compositions are one", f"file,label\nx.png,{NFC}\ny.png,{NFD}\n", (NFC,),
          of(0, "x.png", "y.png")),
    table("files in the other composition", f"file,label\n{NFD}.png,0\n", ("0",), {f"{NFC}.png": 0},
          files={f"{NFC}.png": True}),
    table("files as Windows writes them", "file,label\n.\\a\\x.png,0\n./b/x.png,1\n", ("0", "1"), AB,
          files={"a/x.png": True, "b/x.png": True}),
    table("a file twice", "file,label\nx.png,0\nx.png,1\ny.png,0\n",
          refused="labels.csv in data lists 'x.png' twice: correct it"),
    table("a file twice in two spellings", "file,label\nx.png,0\n./x.png,1\ny.png,0\n",
          refused="labels.csv in data lists one file twice, as 'x.png' and './x.png': correct it"),
    table("a file that is not there", "file,label\nx.png,0\ny.png,0\nxx.png,0\n",
          refused="labels.csv in data lists 1 file that is not there, such as 'xx.png'; did you mean 'x.png'?: correct "
          "it, or bring them back"),
    table("a file that it forgets", "file,label\nx.png,0\n",
          refused="labels.csv in data does not list 1 of the images, such as 'y.png': add them, or name the table "
          "after --labels-from to leave them out"),
    table("a file that is no image", "file,label\nx.png,0\ny.png,0\nz.txt,0\n", files={**FLAT, "z.txt": "-"},
          refused="labels.csv in data lists 1 file that is no image, such as 'z.txt': correct it"),
    table("other columns", "id,breed\nx.png,0\n",
          refused="labels.csv in data has the columns 'id', 'breed', not file and label: name them so in its first "
          "line, or say where the labels are (--labels-from folders, prefix, none or another table)"),
    table("a short row", "file,label\nx.png,0\ny.png\n",
          refused="labels.csv in data, row 3: 1 fields under 2 columns: correct it"),
    table("a quote that does not end", 'file,label\nx.png,"0\n',
          refused="labels.csv in data cannot be read (unexpected end of data): save it as CSV"),
    table("Latin-1", b"file,label\ncaf\xe9.png,0\n",
          refused="labels.csv in data is not UTF-8: save it so"),
    table("an empty table", "file,label\n", refused="labels.csv in data lists no files: correct or remove it"),
    table("a bad image in the table", "file,label\nx.png,1\ny.png,0\n", ("0", "1"), {"x.png": 1}, skip_bad=True,
          files={"x.png": True, "y.png": "<html>"},
          notes=("class '0' has no images; it keeps its label 0", "1 unreadable image is left out (50 %)")),
    table("EDM's", '{"labels": [["00/x.png", 1], ["00/y.png", 0]]}', ("0", "1"), {"00/y.png": 0, "00/x.png": 1},
          files={"00/x.png": True, "00/y.png": True}, name="dataset.json"),
    table("a name that no file can hold", '{"labels": [["x.png", "\\ud800"], ["y.png", "x"]]}', name="dataset.json",
          refused=r"class '\ud800' of dataset.json in data is not named in UTF-8: rename it"),
    table("EDM's without labels", '{"labels": null}', name="dataset.json"),
    table("EDM's in vectors", '{"labels": [["x.png", [0.5, 1]], ["y.png", [0, 1]]]}', name="dataset.json",
          refused="dataset.json in data gives 'x.png' a vector as label: write a number from 0 on, or the class's "
          "name"),
    table("a list", '[["x.png", "dog"], ["y.png", "cat"]]', ("cat", "dog"), {"y.png": 0, "x.png": 1},
          name="dataset.json"),
    table("a mapping", '{"x.png": "dog", "y.png": "cat"}', ("cat", "dog"), {"y.png": 0, "x.png": 1},
          name="dataset.json"),
    table("a mapping within labels", '{"labels": {"x.png": 1, "y.png": 0}}', ("0", "1"), {"y.png": 0, "x.png": 1},
          name="dataset.json"),
    table("numbers and names", '{"x.png": "dog", "y.png": 0}', name="dataset.json",
          refused="dataset.json in data has numbers and names as labels, such as 0 of 'y.png' beside 'dog': use one "
          "kind"),
    table("a fraction", '{"x.png": 1.5, "y.png": 0}', name="dataset.json",
          refused="dataset.json in data gives 'x.png' 1.5 as label: write a number from 0 on, or the class's name"),
    table("true", '{"x.png": true, "y.png": 0}', name="dataset.json",
          refused="dataset.json in data gives 'x.png' True as label: write a number from 0 on, or the class's name"),
    table("a number without end", f'{{"x.png": {"9" * 4000}, "y.png": 0}}', name="dataset.json",
          refused="dataset.json in data gives 'x.png' the label 999999999999999\u202699999999999999, not 0..99999: "
          "correct it"),
    table("COCO's", '{"images": [{"id": 1}], "annotations": []}', name="dataset.json",
          refused="dataset.json in data gives 'images' a list as label: write a number from 0 on, or the class's name"),
    table("a key twice", '{"x.png": 1, "x.png": 0}', name="dataset.json",
          refused="dataset.json in data is not valid JSON (the key 'x.png' is there twice). Restore the file, or "
          "correct it there."),
    table("three fields", '[["x.png", 1, 2]]', name="dataset.json",
          refused="dataset.json in data holds ['x.png', 1, 2]: write [file, label], such as ['a.png', 0]"),
    table("a number", "3", name="dataset.json",
          refused='dataset.json in data is no table of labels: write {"labels": [["a.png", 0], ...]} or '
          '{"a.png": "cat"}'),
    table("nested without end", "[" * 100_000, name="dataset.json",
          refused="dataset.json in data is not valid JSON (nested too deeply). Restore the file, or correct it there."),
    table("two tables", "file,label\nx.png,0\ny.png,0\n", files={**FLAT, "dataset.json": '{"x.png": 0, "y.png": 0}'},
          refused="data 'data' has both labels.csv and dataset.json: say which with --labels-from, or remove one"),
]  # fmt: skip

CHOSEN = [
    Layout("a table beside the data", ["x.png", "y.png"], ("0", "1"), {"y.png": 0, "x.png": 1},
           labels_from="table.csv", table="file,label\nx.png,1\ny.png,0\n"),
    Layout("a table of JSON beside the data", ["x.png", "y.png"], ("cat", "dog"), {"y.png": 0, "x.png": 1},
           labels_from="table.json", table=json.dumps({"x.png": "dog", "y.png": "cat"})),
    Layout("a table within the data", {**FLAT, "lists/a.csv": "file,label\nx.png,1\ny.png,0\n"}, ("0", "1"),
           {"y.png": 0, "x.png": 1}, labels_from="lists/a.csv", notes=("1 files that lists/a.csv in data does not",)),
    Layout("a table chooses images", ["x.png", "y.png"], ("cat",), {"x.png": 0}, labels_from="table.csv",
           table="file,label\nx.png,cat\n", notes=("1 files that table.csv does not list are left out",)),
    Layout("what is not chosen may be bad", {"x.png": True, "y.png": "<html>"}, ("cat",), {"x.png": 0},
           labels_from="table.csv", table="file,label\nx.png,cat\n",
           notes=("1 files that table.csv does not list are left out",)),
    Layout("what is chosen may not", {"x.png": True, "y.png": "<html>"}, labels_from="table.csv",
           table="file,label\nx.png,cat\ny.png,cat\n",
           refused="1 unreadable image of 2 in 'data': 'y.png' (not a PNG, JPEG, WEBP or BMP): " + MEND),
]  # fmt: skip

LAYOUTS = [*FOLDERS, *LINKS, *ORDERS, *PREFIXES, *OTHERS, *AT_TOP, *CHOSEN]


def make_folder(layout):
    root = Path("data")
    root.mkdir()
    sockets = []
    for name, content in layout.contents().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif content == b"fifo":
            os.mkfifo(path)
        elif content == b"socket":
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[-1].bind(str(path))
        elif isinstance(content, tuple) and content[0] == "->":
            path.symlink_to(content[1])
        elif isinstance(content, tuple):
            os.link(root / content[1], path)
        else:
            path.write_bytes(content)
    for s in sockets:
        s.close()
    return root


def make_zip(layout):
    with zipfile.ZipFile("data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in layout.contents().items():
            archive.writestr(name + "/" if content is None else name, b"" if content is None else content)
    return Path("data.zip")


def cases():
    for layout in LAYOUTS:
        kinds = (layout.only,) if layout.only else ("folder",) if layout in LINKS else ("folder", "zip")
        for kind in kinds:
            yield pytest.param(layout, kind, id=f"{layout.id}-{kind}")


@pytest.mark.parametrize(("layout", "kind"), list(cases()))
def test_a_layout_gives_exactly_its_labels_or_exactly_its_line(layout, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("outside.png").write_bytes(png(0))
    if layout.table is not None:
        Path(layout.labels_from).write_text(layout.table, encoding="utf-8")
    try:
        root = make_folder(layout) if kind == "folder" else make_zip(layout)
    except OSError:
        pytest.skip("this file system has no such names")
    arguments = dict(labels_from=layout.labels_from, skip_bad=layout.skip_bad)
    if layout.refused is not None:
        with pytest.raises(AdmError) as error:
            open_dataset(str(root), **arguments)
        assert str(error.value).replace("data.zip", "data") == layout.refused
        assert error.value.exit_code in (2, 3) and len(layout.refused) <= 300 and "\n" not in layout.refused
        return
    data = open_dataset(str(root), **arguments)
    assert data.class_names == layout.names
    assert {path: data.label(i) for i, path in enumerate(data.paths)} == layout.labels
    assert [data.label(i) for i in range(len(data))] == sorted(layout.labels.values())
    notes = tuple(note.replace("data.zip", "data") for note in data.notes)
    assert len(notes) == len(layout.notes) and all(map(str.startswith, notes, layout.notes)), notes
    levels = {name: content for name, content in layout.contents().items() if name in layout.labels}
    for i, path in enumerate(data.paths):
        if isinstance(levels.get(path), bytes):
            assert (data.image(i) == Image.open(io.BytesIO(levels[path])).getpixel((0, 0))).all()


def test_there_are_sixty_layouts_and_more():
    assert len({layout.id for layout in LAYOUTS}) == len(LAYOUTS) >= 60
