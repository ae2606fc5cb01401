"""The frozen surface: commands and their flags are only ever added to."""

import dataclasses
import re

import pytest

from adm.cli.main import commands

TRAIN = [
    *("--data", "--out", "--from", "--preset", "--labels-from", "--steps", "--batch", "--image-size"),
    *("--seed", "--device", "--set"),
]
FLAGS = {
    "convert": ["SRC", "DST", "--flags", "--like", "--to", "--weights"],
    "data check": ["PATH", "--labels-from", "--image-size", "--out"],
    "data pack": [
        *("PATH", "DST", "--image-size", "--channels", "--labels-from", "--skip-bad", "--for-random-crop"),
    ],
    "demo": ["--out", "--device", "--set"],
    "ema": ["RUN", "--std", "--out", "--step"],
    "evaluate": [
        *("REF", "SAMPLES", "--metrics", "--only", "--error-bars", "--weights", "--allow-other-weights", "--num"),
        *("--out", "--inception-precision", "--compile", "--batch", "--no-cache", "--selftest", "--device"),
    ],
    "likelihood": ["MODEL", "DATA", "--num", "--steps", "--batch", "--out", "--seed", "--device"],
    "models get": ["NAME", "--mirror"],
    "models info": ["NAME"],
    "models list": [],
    "plan sample": ["MODEL", "--num", "--steps", "--sampler", "--guidance", "--device", "--no-probe", "--set"],
    "plan train": [
        *("JOB", "--data", "--out", "--from", "--preset", "--labels-from", "--steps", "--batch", "--image-size"),
        *("--seed", "--device", "--processes", "--no-probe", "--set"),
    ],
    "reference": [
        *("DATA", "OUT.npz", "--size", "--num", "--seed", "--no-statistics", "--weights", "--allow-other-weights"),
        *("--batch", "--device"),
    ],
    "sample": [
        *("MODEL", "--out", "--num", "--labels", "--steps", "--sampler", "--guidance"),
        *("--seed", "--device", "--set"),
    ],
    "selftest": ["--device"],
    "study": ["NAME", "--out", "--device"],
    "train classifier": TRAIN,
    "train diffusion": TRAIN,
    "train upsampler": TRAIN,
    "upsample": [
        *("MODEL", "INPUT", "--out", "--num", "--labels", "--steps", "--sampler", "--guidance"),
        *("--seed", "--device", "--set"),
    ],
}
DEFAULTS = {
    "demo": {"out": "demo"},
    "ema": {"step": None},
    "evaluate": {
        "metrics": (),
        "only": False,
        "weights": None,
        "allow_other_weights": False,
        "num": None,
        "batch": 128,
    },
    "plan sample": {"num": 64, "steps": None, "sampler": "ddpm", "guidance": (), "no_probe": False},
    "plan train": {"data": None, "out": None, "preset": None, "no_probe": False},
    "sample": {"num": None, "labels": None, "steps": None, "sampler": "ddpm", "guidance": (), "seed": 0},
    "upsample": {"num": None, "labels": None, "steps": None, "sampler": "ddpm", "guidance": (), "seed": 0},
    "reference": {"size": None, "num": 10_000, "seed": 0, "no_statistics": False, "weights": None},
    "likelihood": {"num": None, "steps": None, "batch": 64, "out": None, "seed": 0},
}


def test_the_commands_are_these():
    assert list(commands()) == sorted(FLAGS)


@pytest.mark.parametrize("name", FLAGS)
def test_the_flags_are_these_and_each_is_explained(name, adm_command):
    result = adm_command(*name.split(), "--help")
    assert (result.code, result.err) == (0, "")
    text = re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]", " ", result.out))
    assert len(dataclasses.fields(commands()[name])) == len(FLAGS[name])
    for flag in FLAGS[name]:
        assert re.search(rf" {flag} (\S+ )?[A-Z]", text), flag
    assert (commands()[name].__doc__ or "").splitlines()[0] in text


@pytest.mark.parametrize("name", FLAGS)
def test_no_sentence_of_help_is_cut_short(name, adm_command):
    """Brackets close within an entry, sources have their years, and no entry ends in an abbreviation."""
    text = re.sub("[│╭╮╰╯─]", " ", adm_command(*name.split(), "--help").out)
    for entry in re.split(r"\n(?: *\n|(?= ? ?\S))", text):  # what follows is indented further
        assert not cuts(" ".join(entry.split())), entry


def cuts(entry: str) -> list[str]:
    """What shows that a sentence is not whole."""
    found = re.findall(r"\bet al\b(?!\. \d{4})", entry) + re.findall(r"\b(?:Eq|Alg|Fig|e\.g|i\.e)\.?$", entry)
    for opening, closing in ("()", "[]"):
        found += [opening] * (entry.count(opening) != entry.count(closing))
    return found


def test_a_sentence_that_is_cut_would_be_noticed():
    assert cuts("kind: min-snr (Hang et al") and cuts("gamma of Ning et al") and cuts("as in ADM Alg") and cuts("[1, 2")
    assert not cuts("kind: min-snr (Hang et al. 2023), as in ADM Alg. 2 and in [0, 1]")


@pytest.mark.parametrize(("name", "field", "value"), [(n, f, v) for n, d in DEFAULTS.items() for f, v in d.items()])
def test_defaults_do_not_move(name, field, value):
    assert {f.name: f.default for f in dataclasses.fields(commands()[name])}[field] == value


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_on_stdout(words, adm_command):
    result = adm_command(*words)
    assert (result.code, result.err) == (0, "")
    assert all(f"adm {name} " in result.out for name in FLAGS)


def test_help_on_a_group_lists_its_commands(adm_command):
    result = adm_command("train", "--help")
    assert result.code == 0 and "adm train diffusion" in result.out and "adm sample" not in result.out


def test_version_is_that_of_the_distribution(adm_command):
    from importlib.metadata import version

    assert adm_command("--version").out == f"adm {version('adm-diffusion')}\n"
