"""No .npz, whatever is in it, makes reading it crash, hang, take memory, or give other numbers than were written."""

import hashlib
import io
import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

import hostile_npz as hostile

SCRIPT = hostile.__file__

MAX_EXTRA_BYTES = 300e6


def read_in_child(files, directory):
    """(outcome by name, bytes by which the peak memory of the process rose)"""
    paths = []
    for name, data in files.items():
        paths.append(directory / f"{name}.npz")
        paths[-1].write_bytes(data)
    run = subprocess.run(
        [sys.executable, SCRIPT], input="\n".join(map(str, paths)), capture_output=True, text=True, check=True
    )
    report = json.loads(run.stdout)
    assert list(report["outcomes"]) == list(files)
    return report["outcomes"], report["peak"]


@pytest.fixture(scope="module")
def hand_made():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile remarks on duplicate names
        return hostile.hand_made()


@pytest.fixture(scope="module")
def read(hand_made, tmp_path_factory):
    """All of them read by one process."""
    files = {**hostile.valid(), **{name: data for name, (_, _, data) in hand_made.items()}, **hostile.mutated(105)}
    return read_in_child(files, tmp_path_factory.mktemp("hostile"))


def check_behaviour(outcomes, peak):
    for name, outcome in outcomes.items():
        assert "fault" not in outcome, (name, outcome["fault"])
        if "code" in outcome:
            line = outcome["line"]
            assert "\n" not in line and len(line) < 600 and f"{name}.npz" in line, line
    assert peak < MAX_EXTRA_BYTES


def check_unchanged(outcomes, originals):
    """Every outcome of a mutated file is an error, or equal to that of the valid file which it was made from."""
    for name, outcome in outcomes.items():
        if "code" not in outcome:
            whole = originals[name.rpartition("-")[0]]
            assert all(outcome[key] == whole[key] for key in ("images", "labels", "statistics")), name
    assert sum("code" in outcome for outcome in outcomes.values()) > 0.8 * len(outcomes)


def test_nothing_crashes_or_hangs_and_memory_stays_small(read):
    check_behaviour(*read)


def test_sixty_files_made_by_hand_are_refused_each_for_its_reason(read, hand_made):
    assert len(hand_made) >= 60
    for name, (code, reason, _) in hand_made.items():
        assert read[0][name].get("code") == code, (name, read[0][name])
        said = read[0][name]["line"].partition(f"{name}.npz")[2]
        assert re.search(reason, said), (name, said)


def test_a_changed_file_is_refused_or_its_arrays_are_those_that_were_written(read):
    check_unchanged({name: read[0][name] for name in hostile.mutated(105)}, read[0])


@pytest.mark.slow
def test_a_thousand_changed_files(tmp_path):
    originals, _ = read_in_child(hostile.valid(), tmp_path)
    outcomes, peak = read_in_child(hostile.mutated(1001, seed=1), tmp_path)
    check_behaviour(outcomes, peak)
    check_unchanged(outcomes, originals)


def test_every_valid_file_gives_the_arrays_that_numpy_loads(read):
    for name, data in hostile.valid().items():
        outcome = read[0][name]
        with np.load(io.BytesIO(data)) as arrays:
            images = np.ascontiguousarray(arrays["arr_0"].astype(np.uint8))
            assert outcome["images"] == hashlib.sha256(images.tobytes()).hexdigest(), outcome
            assert outcome["labels"] == arrays["arr_1"].tolist()
            stored = {key: arrays[key].tolist() for key in ("mu", "sigma") if key in arrays}
            assert outcome["statistics"] == (stored or None)


def test_numpy_itself_would_be_taken_in(hand_made):
    """The twin: read by numpy, a duplicate member wins silently and a bomb is inflated whole."""
    with np.load(io.BytesIO(hand_made["duplicate"][2])) as arrays:
        assert arrays["arr_0"].shape == hostile.LABELS.shape
    assert len(hand_made["bomb"][2]) < 50_000
    with np.load(io.BytesIO(hand_made["bomb"][2])) as arrays:
        assert arrays["arr_0"].nbytes > 40e6
