"""adm models: list, info, get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from pathlib import Path

    from adm.checkpoints.presets import Preset, Score
    from adm.runtime.download import Artifact

COMMANDS: dict[str, type] = {}

Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME", help="As `adm models list` shows it.")]


@dataclass(frozen=True)
class List:
    """The public models that adm knows, and which of them are on this machine."""

    def run(self) -> None:
        from adm.checkpoints.presets import PRESETS
        from adm.checkpoints.store import INCEPTION, artifact, models_directory
        from adm.runtime.text import shown_path

        rows = [("NAME", "WHAT", "SIZE", "HERE")]
        for preset in PRESETS.values():
            rows.append((preset.name, preset.what, _size(artifact(preset), preset), _state(artifact(preset))))
        rows.append((INCEPTION.name, "Inception, with which FID is measured", _size(INCEPTION), _state(INCEPTION)))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        for *cells, last in rows:
            print(
                "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)) + f"  {last}".rstrip()
            )
        print(
            "\n~: what the parameters take in float32, as the size is not published. More of one: adm models info NAME"
        )
        print(f"They are kept in {shown_path(models_directory())}.")


@dataclass(frozen=True)
class Info:
    """What is known of a public model: size, cost, scores, licence, limits, and how to sample from it."""

    name: Name

    def run(self) -> None:
        from adm.checkpoints.presets import find_preset
        from adm.checkpoints.store import INCEPTION, artifact

        if self.name == INCEPTION.name:
            lines = [("file", INCEPTION.file), ("here", _state(INCEPTION) or "no"), ("size", _size(INCEPTION))]
            lines += [("sha256", str(INCEPTION.sha256)), *(("from", url) for url in INCEPTION.urls)]
            _print_block("inception: the network whose features FID, sFID, precision and recall compare", lines)
            return
        preset = find_preset(self.name)
        lines = _cost(preset)
        lines += [("file", preset.file), ("from", preset.url), ("size", _size(artifact(preset), preset))]
        lines += [("here", _state(artifact(preset)) or f"no; adm models get {preset.name}")]
        lines += [("score", _score(score)) for score in preset.scores] or [("score", "the authors report none for it")]
        lines += [("settings", text) for text in _settings(preset)]
        lines += [(what, name) for what, name in _company(preset)]
        lines += [("sample", _example(preset)), ("licence", preset.licence), ("limits", preset.limits)]
        lines += [("flags", preset.flags), *(("not yet verified", text) for text in preset.unverified)]
        _print_block(f"{preset.name}: {preset.what}", lines)


@dataclass(frozen=True)
class Get:
    """Fetch a public model, or what is missing of it after an interruption."""

    name: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="NAME", help="As `adm models list` shows it; inception for the evaluator's network."),
    ]
    mirror: Annotated[
        str | None,
        tyro.conf.arg(metavar="URL", help="An address or directory with the file, instead of $ADM_MIRROR or its own."),
    ] = None

    def run(self) -> None:
        from adm.checkpoints.presets import PRESETS, find_preset
        from adm.checkpoints.store import INCEPTION, artifact, models_directory, recorded_sha256, stored
        from adm.cli._progress import say
        from adm.runtime.text import shown_path

        preset = None if self.name == INCEPTION.name else find_preset(self.name)
        wanted = INCEPTION if preset is None else artifact(preset)
        before = stored(wanted)
        if before.state == "damaged":
            say(f"{wanted.file} {before.note}; it is fetched again")
        if preset is not None and before.state != "here":
            say(f"{preset.licence}. {preset.limits}")
        path = _fetch(wanted, models_directory(), self.mirror)
        say(f"sha256 {recorded_sha256(path)}, recorded beside it")
        if preset is not None and preset.classifier is not None:
            guide = PRESETS[preset.classifier]
            if stored(artifact(guide)).state != "here":
                say(f"its classifier, for guidance, is {guide.name}: adm models get {guide.name}")
        print(shown_path(path))


def _fetch(wanted: Artifact, directory: Path, mirror: str | None) -> Path:
    """`fetch` with a bar in megabytes; stops when asked to, keeping what came."""
    from adm.cli._progress import bar
    from adm.runtime.download import fetch
    from adm.runtime.errors import StoppedError
    from adm.runtime.signals import stop_requests
    from adm.runtime.text import num_bytes

    mega = 1_000_000
    with bar(f"{wanted.file} (MB)", 0) as shown, stop_requests() as stop:

        def on_progress(done: int, total: int | None) -> None:
            shown.update(done // mega, total=-(-(done if total is None else total) // mega))
            if stop() and done != total:
                raise StoppedError(f"stopped; {num_bytes(done)} of {wanted.file} are kept, the same command continues.")

        return fetch(wanted, directory, mirror=mirror, on_progress=on_progress)


def _size(artifact: Artifact, preset: Preset | None = None) -> str:
    """Of the file: as it is here, as it was published, or as its parameters in float32 make it."""
    from adm.checkpoints.store import stored
    from adm.runtime.text import num_bytes

    there = stored(artifact)
    if there.state == "here":
        return num_bytes(there.num_bytes)
    if artifact.num_bytes is not None:
        return num_bytes(artifact.num_bytes)
    return f"~{num_bytes(4 * preset.num_parameters)}" if preset is not None else "?"


def _state(artifact: Artifact) -> str:
    """What is on this machine, in words; nothing if nothing is."""
    from adm.checkpoints.store import stored
    from adm.runtime.text import num_bytes

    there = stored(artifact)
    match there.state:
        case "here":
            return "yes" if there.sha256 else "yes, not checked: adm models get it once"
        case "damaged":
            return f"DAMAGED: {there.note}"
        case "partial":
            return f"{num_bytes(there.num_bytes)} so far"
    return ""


def _cost(preset: Preset) -> list[tuple[str, str]]:
    from adm.checkpoints.presets import preset_spec
    from adm.nn.cost import cost
    from adm.runtime.text import num_bytes

    counted = cost(preset_spec(preset).network)
    weights = num_bytes(4 * counted.num_parameters)
    return [
        ("parameters", f"{counted.num_parameters / 1e6:.2f} million"),
        (
            "cost",
            f"{counted.forward_flops / 1e9:.1f} GFLOPs a step and image (a multiplication and an addition are two)",
        ),
        (
            "memory",
            f"{weights} of weights in float32, and roughly {num_bytes(counted.peak_bytes)} for each image of a batch "
            "(an estimate: the tensors alive at once without gradients; libraries and allocators take more)",
        ),
    ]


def _score(score: Score) -> str:
    values = {
        "FID": score.fid,
        "sFID": score.sfid,
        "IS": score.inception_score,
        "precision": score.precision,
        "recall": score.recall,
    }
    told = ", ".join(f"{name} {value:.2f}" for name, value in values.items() if value is not None)
    return f"{told} ({score.conditions}; reported by the authors)"


def _settings(preset: Preset) -> list[str]:
    return [
        f"{setting.sampler}, {setting.steps} steps"
        + ("" if setting.scale is None else f", scale {setting.scale:g} when guided by its classifier")
        for setting in preset.recommended
    ]


def _company(preset: Preset) -> list[tuple[str, str]]:
    pairs = [("classifier", preset.classifier), ("upsampler", preset.upsampler), ("upsamples", preset.base)]
    pairs += [("guides", name) for name in preset.guides]
    return [(what, name) for what, name in pairs if name is not None]


def _example(preset: Preset) -> str:
    """One line that draws images with it."""
    if preset.kind == "classifier":
        return f"adm sample {preset.guides[0]} --labels tench --guidance classifier --out samples"
    if preset.kind == "upsampler":
        return f"adm upsample {preset.name} samples --out large"
    if preset.classifier is not None:
        return f"adm sample {preset.name} --labels tench --guidance classifier --out samples"
    return f"adm sample {preset.name} {'--labels tench ' if preset.class_table else ''}--out samples"


def _print_block(title: str, lines: list[tuple[str, str]]) -> None:
    import textwrap

    print(title)
    width = max(len(name) for name, _ in lines)
    before = ""
    for name, text in lines:
        shown = "" if name == before else name
        # Addresses, flags and commands are for copying: never broken.
        parts = [text] if name in ("from", "flags", "sample", "sha256") else textwrap.wrap(text, 116 - width) or [""]
        print(f"  {shown:{width}}  {parts[0]}")
        for part in parts[1:]:
            print(f"  {'':{width}}  {part}")
        before = name


COMMANDS = {"models list": List, "models info": Info, "models get": Get}
