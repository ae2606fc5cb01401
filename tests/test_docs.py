"""The documentation is true: its code runs, its commands parse, and what it names exists."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import importlib
import pkgutil
import re
import shlex
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import adm
from adm.checkpoints.load import save_model
from adm.cli._parsing import parse
from adm.cli.main import commands, main
from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.runtime import lookup
from adm.runtime.config import override
from adm.runtime.options import option_groups
from adm.studies.choices import choose
from adm.studies.named_models import named_preset

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS_ARE_RUN = ("add-a-sampler.md", "add-a-guidance.md")
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_HEADER = re.compile(r"# (\S+\.py)\n")


def title(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """(line number, content) of the fenced blocks in a language."""
    return [(text[: m.start(2)].count("\n"), m[2]) for m in FENCED.finditer(text) if m[1] == language]


def inline(text: str) -> list[str]:
    """What stands in `backticks` outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


def command_lines(text: str) -> list[list[str]]:
    """The words after `adm` of each command line, in blocks of shell or no language and in backticks."""
    shell = "".join(content for language in ("", "sh") for _, content in blocks(text, language))
    lines = shell.replace("\\\n", " ").splitlines() + [code for code in inline(text) if code.startswith("adm ")]
    found = []
    for line in lines:
        if "adm " not in line:
            continue
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words and (words[0] == "adm" or words[0].endswith("/adm")):
            found.append(words[1:])
    return found


def command_of(words: list[str]) -> tuple[str, list[str]]:
    """The command's name and its flags."""
    known = commands()
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in known), None)
    assert name is not None, f"there is no command adm {' '.join(words)}"
    return name, words[len(name.split()) :]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory from which modules can be imported; afterwards they are forgotten."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] == "mylab":
            del sys.modules[name]


def run_blocks(page: Path, only_files: bool = False) -> None:
    """Top to bottom in one namespace; a block that begins with `# a/file.py` is written there instead."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    for line, code in blocks(page.read_text(), "python"):
        header = FILE_HEADER.match(code)
        if header:
            file = Path(header[1])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code)
            importlib.invalidate_caches()
        elif not only_files:
            shorter = code.replace("spaced(1000, 250)", "spaced(1000, 5)")  # 250 steps take long, and show no more
            exec(compile("\n" * line + shorter, str(page), "exec"), namespace)


def save_models_of_the_readme() -> None:
    """Stand-ins for what the commands before the README's Python block train, as small as can be."""
    trunk: dict[str, Any] = {"image_size": 32, "model_channels": 2, "channel_mult": (1, 1, 1), "num_res_blocks": 1}
    trunk |= {"attention_resolutions": (), "num_heads": 1}
    unet = UNet(UNetConfig(out_channels=6, num_classes=2, **trunk))
    classifier = EncoderClassifier(ClassifierConfig(num_classes=2, num_head_channels=None, pool="adaptive", **trunk))
    schedule = adm.cosine(1000)
    model = adm.DiffusionModel(unet, schedule)
    model.class_names = ("cat", "dog")
    save_model(model, "runs/photos")
    save_model(adm.NoisyClassifier(classifier, schedule), "runs/clf")


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_code_blocks_run_top_to_bottom(page: Path, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if page == README:
        save_models_of_the_readme()
    run_blocks(page)
    if page.name in COMMANDS_ARE_RUN:
        lines = [words for words in command_lines(page.read_text()) if len(words) > 2]
        assert lines, "a page that adds a component shows how to use it from the command line"
        for words in lines:
            assert main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_command_lines_parse(page: Path, workplace: Path) -> None:
    """Flags exist, settings exist and take the value, and component specs build."""
    run_blocks(page, only_files=True)
    for words in command_lines(page.read_text()):
        if "--help" in words:
            continue
        if words in (["train"], ["plan"], ["data"]):  # the word for a group of commands
            continue
        name, flags = command_of(words)
        if flags:
            check_parsed(name, parse(commands()[name], name, flags))


def check_parsed(name: str, parsed: Any) -> None:
    if hasattr(parsed, "set"):
        override(settings_of(name), parsed.set)
    if hasattr(parsed, "sampler"):
        lookup.build("sampling", parsed.sampler)
    for spec in choose(named_preset(parsed.model), "", "ddpm", 1, parsed.guidance).guidance if name == "sample" else ():
        lookup.build("guidance", spec, resolve=lambda annotation, text: Mock())


def settings_of(command: str) -> Any:
    """What --set of a command changes."""
    from adm.cli.sample import SampleSettings
    from adm.data.digits import Digits
    from adm.studies.demo import DemoConfig
    from adm.training.defaults import default_config

    if command == "plan train":
        return default_config("diffusion", "digits", Digits("train"))
    if command.startswith("train "):
        return default_config(command.split()[1], "digits", Digits("train"))
    return {"sample": SampleSettings, "upsample": SampleSettings, "plan sample": SampleSettings, "demo": DemoConfig}[
        command
    ]()


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_names_exist(page: Path) -> None:
    """Python files, adm.x.y, links to other pages, and in backticks: classes, their attributes, functions."""
    text = page.read_text()
    written, public = examples()
    missing = [name for name in re.findall(r"(?<![\w.-])[\w./-]+\.py\b", text) if not file_exists(name, written)]
    missing += [
        name
        for name in re.findall(r"(?<![\w./-])adm(?:\.[A-Za-z_]\w*)+", text)
        if not (name in public or resolves(name))
    ]
    missing += [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (page.parent / link).exists()]
    missing += [code for code in inline(text) if not identifier_exists(code)]
    assert not missing, f"{page.name} names what does not exist: {missing}"


@functools.cache
def examples() -> tuple[set[str], set[str]]:
    """The files that pages write, and as what they are public once they lie in their rooms."""
    files: set[str] = set()
    public: set[str] = set()
    for _, code in [block for page in PAGES for block in blocks(page.read_text(), "python")]:
        header = FILE_HEADER.match(code)
        if header:
            files.add(header[1])
            public |= {f"adm.{name}" for name in re.findall(r'^__all__ = \["(\w+)"\]$', code, re.MULTILINE)}
    return files, public


def file_exists(name: str, written: set[str]) -> bool:
    return name in written or any((base / name).is_file() for base in (ROOT, ROOT / "src" / "adm"))


def resolves(dotted: str) -> bool:
    """Whether adm.x.y is a module or a name in one."""
    owner: Any = adm
    path = "adm"
    for part in dotted.split(".")[1:]:
        path = f"{path}.{part}"
        try:
            owner = getattr(owner, part)
        except AttributeError:
            try:
                owner = importlib.import_module(path)
            except ImportError:
                return False
    return True


def identifier_exists(code: str) -> bool:
    """`Class`, `Class.attribute`, `Class(...)`, `function` or `module_name`; other texts are not looked at."""
    match = re.fullmatch(r"([A-Z]\w*|[a-z]+(?:_[a-z0-9]+)+)(?:\.(\w+))?(?:\(.*\))?", code)
    if match is None or code.isupper() or match[1] in WORDS:
        return True
    owners = everything().get(match[1], [])
    return any(match[2] is None or has(owner, match[2]) for owner in owners)


WORDS = (
    *("PYTHONPATH", "arr_0", "arr_1", "base_samples", "use_kl", "save_to_disk", "Thumbs", "Zoo", "MANIFEST"),
    *("accuracy_top5", "accuracy_standard_error", "at_t0", "calibrated_scale", "training_loss"),
)
"""Words in backticks that look like names in the code and are something else."""


def has(owner: Any, attribute: str) -> bool:
    fields = {field.name for field in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else ()
    return attribute in fields or hasattr(owner, attribute)


@functools.cache
def everything() -> dict[str, list[Any]]:
    """All that adm defines, by name: what stands in its modules, methods, fields and parameters."""
    found: dict[str, list[Any]] = {name: [getattr(builtins, name)] for name in ("None", "True", "False")}
    for module_info in pkgutil.walk_packages(adm.__path__, "adm."):
        module = importlib.import_module(module_info.name)
        found.setdefault(module_info.name.rpartition(".")[2], []).append(module)
        for name, value in vars(module).items():
            found.setdefault(name, []).append(value)
            for inner in inner_names(value):
                found.setdefault(inner, []).append(value)
    return found


def option_rows(room: str) -> list[str]:
    """The table of a room's options as Markdown: what docs and docstrings, and so --help, have in common."""
    rows = []
    for name in lookup.available(room):
        for options, meaning in option_groups(lookup.find(room, name)):
            written = ", ".join(f"`{option}`" for option in options)
            rows.append(f"| `{name}` | {written} | {meaning.replace('|', chr(92) + '|')} |")
    return rows


@pytest.mark.parametrize("room", ["sampling", "guidance", "studies.experiments"])
def test_every_option_has_a_meaning(room: str) -> None:
    """A sentence of the component's docstring that begins with the option's name."""
    unexplained = [
        f"{name}: {', '.join(options)}"
        for name in lookup.available(room)
        for options, meaning in option_groups(lookup.find(room, name))
        if not meaning
    ]
    assert not unexplained


@pytest.mark.parametrize(("room", "page"), [("sampling", "sampling.md"), ("guidance", "guidance.md")])
def test_the_table_of_options_says_what_the_docstrings_say(room: str, page: str) -> None:
    """The same rows in the same order, so that one is copied from the other: adm sample --guidance NAME --help."""
    text = (ROOT / "docs" / page).read_text()
    table = text.partition("| option | meaning |\n|---|---|---|\n")[2].partition("\n\n")[0]
    assert table == "\n".join(option_rows(room))


@pytest.mark.parametrize(("room", "page"), [("sampling", "add-a-sampler.md"), ("guidance", "add-a-guidance.md")])
def test_a_file_of_the_docs_is_public_by_lying_in_its_room(
    room: str, page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_blocks(ROOT / "docs" / page, only_files=True)
    (file,) = (workplace / "mylab").glob("*.py")
    package = importlib.import_module(f"adm.{room}")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(file.parent)])
    component = lookup.find(room, file.stem)
    try:
        assert file.stem in lookup.available(room)
        assert getattr(adm, component.__name__) is component
    finally:
        vars(adm).pop(component.__name__, None)
        vars(package).pop(file.stem, None)
        sys.modules.pop(f"adm.{room}.{file.stem}", None)


def inner_names(value: Any) -> set[str]:
    """A class's members and constructor arguments, a function's arguments, the words of a Literal."""
    if typing.get_origin(value) is typing.Literal:
        return set(map(str, typing.get_args(value)))
    if not str(getattr(value, "__module__", "")).startswith("adm."):
        return set()
    if isinstance(value, type):
        fields = set(getattr(value, "__dataclass_fields__", ()))
        return set(vars(value)) | fields | set(getattr(value.__init__, "__annotations__", ()))
    return set(getattr(value, "__annotations__", ()))


def test_a_wrong_name_a_wrong_flag_and_a_wrong_file_would_be_noticed(workplace: Path) -> None:
    """The twin: what the checks above look for, they find."""
    assert resolves("adm.Chain") and resolves("adm.diffusion.chain.Link")
    assert not resolves("adm.Chainn") and not resolves("adm.diffusion.chains")
    assert not file_exists("sampling/ddpm2.py", set())
    assert identifier_exists("Link.mean") and identifier_exists("Prediction.var_frac")
    assert not identifier_exists("Link.means") and not identifier_exists("Linke") and not identifier_exists("var_fraq")
    assert command_lines("```sh\nA=1 adm sample x \\\n  --out y # why\n```\nand `adm demo`, `./adm x`") == [
        ["sample", "x", "--out", "y"],
        ["demo"],
    ]
    with pytest.raises(adm.runtime.errors.UsageError, match="--stepz"):
        parse(commands()["sample"], "sample", ["m", "--out", "o", "--stepz", "3"])
    with pytest.raises(AssertionError, match="no command"):
        command_of(["paint", "--out", "x"])
    page = workplace / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_blocks(page)
