"""No image, whatever is in it, makes looking at it crash, hang or take memory; and each is what it is."""

import json
import os
import re
import subprocess
import sys

import pytest

import hostile_images as hostile

SCRIPT = hostile.__file__

MAX_EXTRA_BYTES = 1e9
MAX_MEAN_SECONDS = 0.05
"""Ten times what a decoder needs, as machines are busy."""

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the files are those of POSIX")


def looked_at(root, tmp_path):
    environment = os.environ | {"ADM_CACHE": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, SCRIPT, str(root)], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stderr == ""
    return json.loads(run.stdout)


def check_behaviour(report):
    """No fault; the scan before training says of each file what looking at it alone says; what is left is usable."""
    verdicts = report["verdicts"]
    assert not {name: found for name, found in verdicts.items() if "fault" in found}
    said = {name: found["said"] for name, found in verdicts.items()}
    images = {name for name, what in said.items() if what == hostile.IMAGE}
    assert set(report["scan"]["images"]) == images and report["scan"]["finite"]
    bad = {name: what for name, what in said.items() if what not in (hostile.IMAGE, hostile.SKIPPED)}
    assert report["scan"]["bad"] == bad
    assert all("\n" not in why and 0 < len(why) <= 100 for why in bad.values())
    assert report["peak"] < MAX_EXTRA_BYTES
    return said


@pytest.fixture(scope="module")
def hand_made(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    cases = hostile.hand_made()
    hostile.build(root / "images", cases)
    return cases, looked_at(root / "images", root)


def test_hand_made_images_never_crash_hang_or_take_memory(hand_made):
    cases, report = hand_made
    assert len(cases) >= 80 and len({name for name, *_ in cases}) == len(cases)
    check_behaviour(report)


def test_each_hand_made_image_is_what_it_is(hand_made):
    cases, report = hand_made
    for name, _, expected in cases:
        if expected == hostile.HIDDEN:
            assert name not in report["verdicts"]
            continue
        said = report["verdicts"][name]["said"]
        if expected in (hostile.IMAGE, hostile.SKIPPED):
            assert said == expected, (name, said)
        else:
            assert said not in (hostile.IMAGE, hostile.SKIPPED) and re.search(expected, said), (name, said)


def check_mutated(num, seed, tmp_path, mend=False):
    made = hostile.mutated(num, seed)
    root = tmp_path / "images"
    root.mkdir()
    for name, data in made.items():
        (root / name).write_bytes(hostile.repaired(data) if mend else data)
    hostile.build(tmp_path / "whole", hostile.good())
    report = looked_at(root, tmp_path)
    said = check_behaviour(report)
    assert sum(found["seconds"] for found in report["verdicts"].values()) < MAX_MEAN_SECONDS * num
    changed = [name for name in made if made[name] != (tmp_path / "whole" / name[5:]).read_bytes()]
    return said, changed


def test_no_change_to_a_png_goes_unseen(tmp_path):
    """Its checksums see it; what follows its end is of no account."""
    said, changed = check_mutated(128, 0, tmp_path)
    pngs = [name for name in changed if name.endswith(".png") and name[5:] not in ("jpeg-inside.png", "trailing.png")]
    assert len(pngs) > 50 and not [name for name in pngs if said[name] == hostile.IMAGE]


@pytest.mark.slow
@pytest.mark.parametrize("mend", [False, True])
def test_a_thousand_mutated_images(mend, tmp_path):
    check_mutated(1000, 1, tmp_path, mend)
