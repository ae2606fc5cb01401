"""adm models list, info and get, with a directory as the mirror."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from adm.checkpoints import store
from adm.checkpoints.presets import PRESETS
from conftest import Command

CONTENT = b"\x80\x02" + bytes(range(256)) * 10_000


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a mirror with one file in it."""
    monkeypatch.setenv("ADM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ADM_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "64x64_diffusion.pt").write_bytes(CONTENT)
    return tmp_path


def line(text: str, name: str) -> str:
    return next(row for row in text.splitlines() if row.split(" ")[0] == name)


def test_list_has_a_line_for_every_preset_and_tells_what_is_here(adm_command: Command, places: Path):
    listed = adm_command("models", "list")
    assert listed.code == 0
    for preset in PRESETS.values():
        assert preset.what in line(listed.out, preset.name) and "yes" not in line(listed.out, preset.name)
    assert "~2.2 GB" in line(listed.out, "openai/imagenet256") and "96 MB" in line(listed.out, "inception")
    assert adm_command("models", "get", "openai/imagenet64").code == 0
    here = line(adm_command("models", "list").out, "openai/imagenet64")
    assert here.split()[-3:] == ["2.6", "MB", "yes"]
    with (places / "cache" / "models" / "64x64_diffusion.pt").open("r+b") as stream:
        stream.truncate(1000)
    assert "DAMAGED: has 1.0 kB of 2.6 MB" in line(adm_command("models", "list").out, "openai/imagenet64")


def test_get_fetches_records_and_names_the_classifier_and_the_licence(adm_command: Command, places: Path):
    got = adm_command("models", "get", "openai/imagenet64")
    path = places / "cache" / "models" / "64x64_diffusion.pt"
    assert got.code == 0 and got.out.strip().endswith("64x64_diffusion.pt") and path.read_bytes() == CONTENT
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert f"sha256 {sha256}" in got.err and "not commercial deployment" in got.err
    assert "adm models get openai/imagenet64-classifier" in got.err
    assert json.loads(path.with_name(f"{path.name}.json").read_text())["sha256"] == sha256
    preset = store.preset_of_sha256(sha256)
    assert preset is not None and preset.name == "openai/imagenet64"
    again = adm_command("models", "get", "openai/imagenet64")
    assert again.code == 0 and "not commercial deployment" not in again.err


def test_get_mends_a_damaged_file(adm_command: Command, places: Path):
    adm_command("models", "get", "openai/imagenet64")
    path = places / "cache" / "models" / "64x64_diffusion.pt"
    path.write_bytes(CONTENT[:-1] + b"?")
    assert adm_command("models", "get", "openai/imagenet64").code == 0 and path.read_bytes() == CONTENT
    path.write_bytes(CONTENT[:100])
    mended = adm_command("models", "get", "openai/imagenet64")
    assert "it is fetched again" in mended.err and path.read_bytes() == CONTENT


def test_stopping_a_download_exits_75_and_the_same_command_continues(
    adm_command: Command, places: Path, monkeypatch: pytest.MonkeyPatch
):
    from adm.runtime import download

    monkeypatch.setattr(download, "CHUNK", 100_000)
    append = download._append

    def interrupted(artifact, source, partial, have, total, report):  # type: ignore[no-untyped-def]
        def told(done: int, total: int | None) -> None:
            if 1_000_000 <= done < 1_100_000:
                os.kill(os.getpid(), signal.SIGINT)
            report(done, total)

        append(artifact, source, partial, have, total, told)

    monkeypatch.setattr(download, "_append", interrupted)
    stopped = adm_command("models", "get", "openai/imagenet64")
    assert stopped.code == 75 and "1.0 MB of 64x64_diffusion.pt are kept, the same command continues" in stopped.last
    assert "1.0 MB so far" in line(adm_command("models", "list").out, "openai/imagenet64")
    assert not (places / "cache" / "models" / "64x64_diffusion.pt").exists()
    seen: list[int] = []
    monkeypatch.setattr(download, "_append", lambda *args: (seen.append(args[3]), append(*args)))
    assert adm_command("models", "get", "openai/imagenet64").code == 0 and seen == [1_000_000]
    assert (places / "cache" / "models" / "64x64_diffusion.pt").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("get", "openai/lsun-cat"), 5, "there is no such file"),
        (("get", "openai/imagenet65"), 2, "did you mean 'openai/imagenet64'?"),
        (("info", "imagenet64"), 2, "did you mean 'openai/imagenet64'?"),
        (("get", "openai/imagenet64", "--mirror", "/no/such"), 2, "no such directory"),
        (("get", "inception"), 5, "inception cannot be fetched"),
    ],
)
def test_what_cannot_be_is_one_line(adm_command: Command, words: tuple[str, ...], code: int, says: str):
    result = adm_command("models", *words)
    assert result.code == code and says in result.last


def test_a_page_instead_of_a_checkpoint_exits_4(adm_command: Command, places: Path):
    (places / "mirror" / "lsun_cat.pt").write_bytes(b"<html>Please log in</html>")
    refused = adm_command("models", "get", "openai/lsun-cat")
    assert refused.code == 4 and "gives a web page, not openai/lsun-cat" in refused.last
    (places / "mirror" / store.INCEPTION.file).write_bytes(CONTENT)  # a torch file, but not that one
    assert adm_command("models", "get", "inception").code == 4
    assert not (places / "cache" / "models" / store.INCEPTION.file).exists()


def test_info_tells_all_of_a_preset(adm_command: Command):
    told = adm_command("models", "info", "openai/imagenet128")
    assert told.code == 0
    text = " ".join(told.out.split())
    for words in (
        "421.53 million",
        "613.9 GFLOPs a step and image (a multiplication and an addition are two)",
        "1.7 GB of weights in float32",
        "an estimate",
        "FID 2.97, sFID 5.09, precision 0.78, recall 0.59 (classifier guidance 0.5, 250 DDPM steps; reported",
        "ddim, 25 steps, scale 1.25",
        "classifier openai/imagenet128-classifier",
        "upsampler openai/imagenet128-to-512",
        "adm sample openai/imagenet128 --labels tench --guidance classifier --out",
        "not commercial deployment",
        "--num_heads 4",
        "not yet verified hash and size",
        "no; adm models get openai/imagenet128",
    ):
        assert words in text, words
    flags = next(row for row in told.out.splitlines() if row.strip().startswith("flags"))
    assert flags.endswith(PRESETS["openai/imagenet128"].flags)  # on one line, to be copied


@pytest.mark.parametrize("name", ["openai/imagenet64-classifier", "openai/imagenet128-to-512", "inception"])
def test_info_of_what_is_no_diffusion_model(adm_command: Command, name: str):
    told = adm_command("models", "info", name)
    assert told.code == 0 and told.out.startswith(f"{name}: ")
    if name == "openai/imagenet64-classifier":
        assert "cosine schedule" in " ".join(told.out.split()) and "guides            openai/imagenet64" in told.out
