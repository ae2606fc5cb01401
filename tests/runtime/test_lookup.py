"""A component is found by the name of its file and built from text; a mistake is one line with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import adm
from adm.runtime import lookup
from adm.runtime.errors import DataError, UsageError

COMPONENT = """
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

__all__ = ["Blend"]


class Model(Protocol):
    def predict(self) -> int: ...


@dataclass(frozen=True)
class Blend:
    model: Model
    scale: float = 1.0
    sizes: tuple[int, ...] = (1,)
    span: tuple[float, float] | None = None
    mode: Literal["mean", "last"] = "mean"
    other: Model | None = None
    after: bool = False
    where: Path = Path("x")
    count: int | str = 250

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(f"scale {self.scale}: choose 0 or more")
"""


@pytest.fixture
def mylab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import sys

    package = tmp_path / "mylab"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "blend.py").write_text(COMPONENT)
    (package / "two.py").write_text(
        "__all__ = ['A', 'B']\nclass A:\n    def __init__(self, x: int): self.x = x\nB = A\n"
    )
    (package / "broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mylab"]:
        del sys.modules[name]


def resolve(annotation: Any, text: str) -> object:
    return (annotation.__name__, text)


def build(options: str, **keywords: Any) -> Any:
    return lookup.build("sampling", f"mylab.blend:{options}" if options else "mylab.blend", resolve, **keywords)


def test_a_file_of_a_room_is_a_component() -> None:
    names = lookup.available("sampling")
    assert {"ddpm", "ddim"} <= set(names) and names == sorted(names)
    assert not any(name.startswith("_") for name in names)
    assert lookup.find("sampling", "ddim") is adm.DDIM
    assert lookup.find("sampling", "adm.sampling.ddim") is adm.DDIM
    assert lookup.find("sampling", "adm.sampling.ddim.DDIM") is adm.DDIM
    assert lookup.build("sampling", "ddim:eta=0.3") == adm.DDIM(eta=0.3)


@pytest.mark.parametrize("room", ["sampling", "guidance"])
def test_every_component_file_has_one_public_name(room: str) -> None:
    for name in lookup.available(room):
        assert callable(lookup.find(room, name)) and lookup.find(room, name.replace("_", "-"))


def test_modules_of_the_user_are_components(mylab: None) -> None:
    assert lookup.find("sampling", "mylab.blend").__name__ == "Blend"
    assert lookup.find("sampling", "mylab.two.A").__name__ == "A"
    assert lookup.build("sampling", "mylab.two.A:x=3").x == 3


def test_options_become_the_constructors_types(mylab: None) -> None:
    built = build("model=runs/a:b=c,scale=2,sizes=(1,2,3),span=(0.5,2),mode=last,after=true,where=/a b/c,count=10")
    assert built.model == ("Model", "runs/a:b=c") and built.scale == 2.0 and built.sizes == (1, 2, 3)
    assert built.span == (0.5, 2.0) and built.mode == "last" and built.after is True
    assert built.where == Path("/a b/c") and built.other is None
    assert build("model=x,other=runs/b").other == ("Model", "runs/b")
    assert build("model=x,other=none,span=None").other is None
    assert build("model=(ddim:eta=1,x=2)").model == ("Model", "ddim:eta=1,x=2")
    assert build("model=x,sizes=7").sizes == (7,) and build("model=x,sizes=()").sizes == ()
    assert isinstance(build("model=x,scale=3").scale, float)


def test_numbers_of_options_may_be_infinite_but_never_nan(mylab: None) -> None:
    assert build("model=x,scale=inf").scale == float("inf") and build("model=x,scale=Infinity").scale == float("inf")
    assert build("model=x,span=(-inf,inf)").span == (float("-inf"), float("inf"))
    for options in ("scale=nan", "span=(nan,inf)"):
        with pytest.raises(UsageError, match=r"finite"):
            build(f"model=x,{options}")


@pytest.mark.parametrize(
    ("room", "spec", "option"),
    [
        ("sampling", "dpm_solver_2m:reach=inf", "reach"),
        ("sampling", "heun:churn=3,churn_max=inf", "churn_max"),
        ("guidance", "interval:low=0.2,high=inf", "high"),
    ],
)
def test_what_is_published_as_infinite_can_be_written(room: str, spec: str, option: str) -> None:
    built = lookup.build(room, spec, given={"of": lambda denoiser: denoiser})
    assert getattr(built, option) == float("inf")


def test_given_arguments_fill_what_the_constructor_has(mylab: None) -> None:
    given = {"model": 5, "scale": 3.0, "unheard_of": 1}
    assert build("", given=given).model == 5
    assert build("scale=4", given=given).scale == 4.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", ["needs 'model'", "mylab.blend:model=..."]),
        ("model=x,skale=2", ["no option 'skale'", "did you mean 'scale'?", "mode"]),
        ("model=x,scale=big", ["scale=big", "valid number"]),
        ("model=x,scale=nan", ["scale=nan", "finite"]),
        ("model=x,scale=-1", ["scale -1.0: choose 0 or more"]),
        ("model=x,mode=first", ["mode=first", "'mean' or 'last'"]),
        ("model=x,sizes=(1,b)", ["sizes=(1,b)", "integer"]),
        ("model=x,span=(1,2,3)", ["span=(1,2,3)", "at most 2"]),
        ("model=x,after=maybe", ["after=maybe", "boolean"]),
        ("model=x,scale=1,scale=2", ["'scale' is given twice"]),
        ("model=x,after", ["'after' is no option", "option=value"]),
        ("model=x,sizes=(1,2", ["lacks a ')'"]),
        ("model=x,sizes=1)", ["without its opening"]),
        ("model=x,=3", ["is no option"]),
        ("model=x,a\nb=3", ["is no option"]),
        ("model=x," + "y" * 5000 + "=3", ["no option"]),
        ("model=x,scale=" + "\n" * 5000, ["scale="]),
    ],
)
def test_mistakes_in_options_are_one_line(mylab: None, options: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        build(options)
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ddmi", ["there is no sampler 'ddmi'; did you mean", "Choose one of: ddim, ddpm"]),
        ("DDIM", ["did you mean 'ddim'?"]),
        ("_loop", ["not a name"]),
        ("../ddim", ["not a name"]),
        ("", ["not a name"]),
        ("a..b", ["not a name"]),
        ("os.path\0", ["not a name"]),
        ("x" * 5000, ["there is no"]),
        ("mylab.absent", ["neither a module nor a name", "PYTHONPATH"]),
        ("mylab.blend.Absent", ["neither a module nor a name"]),
        ("absent.module", ["neither a module nor a name"]),
        ("mylab.two", ["2 names in __all__"]),
        ("mylab.broken", ["needs 'not_installed_anywhere'", "Install it"]),
    ],
)
def test_unknown_names_are_one_line(mylab: None, name: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        lookup.build("sampling", name)
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 300


def test_a_model_needs_somebody_who_resolves_it(mylab: None) -> None:
    with pytest.raises(UsageError, match="model cannot be given as text"):
        lookup.build("sampling", "mylab.blend:model=x")

    def refuse(annotation: Any, text: str) -> object:
        raise DataError(f"no {text}")

    with pytest.raises(DataError, match="no x"):
        lookup.build("sampling", "mylab.blend:model=x", refuse)


def test_a_spec_is_a_name_and_options() -> None:
    assert lookup.parse_spec("ddim") == lookup.Spec("ddim", {})
    assert lookup.parse_spec("a.b:") == lookup.Spec("a.b", {})
    spec = lookup.parse_spec("classifier:classifier=C:/runs/clf=2,scale=4,span=[1,(2,3)],grad-at=mean")
    assert spec.options == {
        "classifier": "C:/runs/clf=2",
        "scale": "4",
        "span": "[1,(2,3)]",
        "grad_at": "mean",
    }
