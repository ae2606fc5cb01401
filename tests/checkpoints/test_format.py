"""A checkpoint is complete or absent, and no changed bit in it goes unseen."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from adm.checkpoints import format
from adm.runtime import files
from adm.runtime.errors import DamagedError, DivergedError, ResourceError, UsageError
from faults import count_operations, disk_error, faults, kill_at

TENSORS = {
    "model": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor(0.5)},
    "optimizer": {"weight.exp_avg": torch.ones(3, dtype=torch.float64)},
}


def save(checkpoints: Path, step: int) -> Path:
    directory = checkpoints / format.step_name(step)
    format.save(directory, tensors=TENSORS, documents={"model": {"channels": 8}, "state": {"step": step}})
    return directory


def snapshot(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def flip(path: Path, bit: int | None = None) -> None:
    bit = 8 * (path.stat().st_size - 1) if bit is None else bit
    with open(path, "r+b", buffering=0) as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def is_one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) < 300


# ---- contents ---------------------------------------------------------------------------------------


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    loaded = format.load(save(tmp_path, 1200))
    assert loaded.documents == {"model": {"channels": 8}, "state": {"step": 1200}}
    assert {g: set(t) for g, t in loaded.tensors.items()} == {g: set(t) for g, t in TENSORS.items()}
    for group, members in TENSORS.items():
        for name, tensor in members.items():
            assert loaded.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(loaded.tensors[group][name], tensor)
    assert set(snapshot(tmp_path / "step-00001200")) == {
        "MANIFEST.json", "model.json", "model.safetensors", "optimizer.safetensors", "state.json",
    }  # fmt: skip


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
DTYPES += [torch.int8, torch.uint8, torch.bool]


def test_files_are_those_of_the_safetensors_library_to_the_byte(tmp_path: Path) -> None:
    tensors = {f"é{i}": torch.arange(5).to(dtype) for i, dtype in enumerate(DTYPES)}
    tensors |= {"scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3), "images": torch.randn(2, 3, 4, 5)}
    format.save(tmp_path / "c", tensors={"all": tensors}, documents={})
    assert (tmp_path / "c" / "all.safetensors").read_bytes() == safetensors.torch.save(tensors)


def test_equal_contents_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    backwards = {group: dict(reversed(members.items())) for group, members in reversed(TENSORS.items())}
    format.save(tmp_path / "a", tensors=TENSORS, documents={"x": 1, "y": 2})
    format.save(tmp_path / "b", tensors=backwards, documents={"y": 2, "x": 1})
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


def test_views_transposes_and_shared_memory_are_saved_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "tied": base, "row": base[1], "transposed": base.t(), "strided": base[:, ::2]}
    tensors["parameter"] = torch.nn.Parameter(base)
    tensors["expanded"] = base[:1].expand(5, 4)
    with pytest.raises(RuntimeError, match="share memory"):
        safetensors.torch.save({"base": base, "tied": base})
    format.save(tmp_path / "c", tensors={"m": tensors}, documents={})
    loaded = format.load(tmp_path / "c").tensors["m"]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    loaded["tied"].zero_()
    assert torch.equal(loaded["base"], base)


def test_groups_are_loaded_as_asked_but_all_are_checked(tmp_path: Path) -> None:
    directory = save(tmp_path, 1)
    assert set(format.load(directory, groups=["model"]).tensors) == {"model"}
    assert format.load(directory, groups=[]).tensors == {}
    with pytest.raises(DamagedError, match=r"ema\.safetensors: not part of this checkpoint"):
        format.load(directory, groups=["ema"])
    flip(directory / "optimizer.safetensors")
    with pytest.raises(DamagedError, match=r"optimizer\.safetensors"):
        format.load(directory, groups=["model"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_number_that_is_not_finite_is_refused_before_anything_is_written(
    tmp_path: Path, bad: float, dtype: torch.dtype
) -> None:
    tensor = torch.ones(100, dtype=dtype)
    tensor[57] = bad
    with pytest.raises(DivergedError, match=r"model: out\.weight has 1 of 100") as raised:
        format.save(tmp_path / "c", tensors={"model": {"out.weight": tensor}}, documents={})
    assert is_one_line(raised.value) and os.listdir(tmp_path) == []
    with pytest.raises(DivergedError, match=r"state\.json"):
        format.save(tmp_path / "c", tensors={}, documents={"state": {"loss": bad}})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "", "a/b", "MANIFEST", ".hidden", "x" * 65, "a\n"])
def test_parts_have_plain_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        format.save(tmp_path / "c", tensors={name: {}}, documents={})
    with pytest.raises(ValueError, match="cannot name"):
        format.save(tmp_path / "c", tensors={}, documents={name: 1})


def test_a_step_is_saved_once_and_under_its_own_name(tmp_path: Path) -> None:
    before = snapshot(save(tmp_path, 5))
    with pytest.raises(UsageError, match="exists already"):
        save(tmp_path, 5)
    assert snapshot(tmp_path / "step-00000005") == before
    with pytest.raises(ValueError, match="step 6"):
        format.save(tmp_path / "step-00000006", tensors={}, documents={"state": {"step": 5}})


# ---- damage -----------------------------------------------------------------------------------------


def test_flipped_bits_are_all_seen_in_every_byte_of_every_file(tmp_path: Path) -> None:
    directory = save(tmp_path, 1)
    flips = 0
    for path in sorted(directory.iterdir()):
        for bit in range(0, 8 * path.stat().st_size, 5):  # each byte once or twice, each place in it in turn
            flip(path, bit)
            with pytest.raises(DamagedError, match=path.name):
                files.verify_directory(directory)
            with pytest.raises(DamagedError) as raised:
                format.load(directory)
            assert is_one_line(raised.value)
            flip(path, bit)
            flips += 1
    format.load(directory)
    assert flips > 1000


def test_safetensors_alone_loads_flipped_bits_as_wrong_numbers(tmp_path: Path) -> None:
    """The twin: without the manifest most flips in the data are silent."""
    path = save(tmp_path, 1) / "model.safetensors"
    silent = 0
    for bit in range(8 * (path.stat().st_size - 28), 8 * path.stat().st_size):
        flip(path, bit)
        loaded = safetensors.torch.load(path.read_bytes())
        silent += any(not torch.equal(loaded[name], tensor) for name, tensor in TENSORS["model"].items())
        flip(path, bit)
    assert silent > 0.9 * 28 * 8


def test_every_truncation_of_every_file_is_seen(tmp_path: Path) -> None:
    directory = save(tmp_path, 1)
    for path in sorted(directory.iterdir()):
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(DamagedError, match=path.name) as raised:
                files.verify_directory(directory)
            if length % 16 == 0:
                with pytest.raises(DamagedError, match=path.name):
                    format.load(directory)
            if path.name != "MANIFEST.json":
                assert f"{length:,} of {len(whole):,} bytes" in str(raised.value)
        path.write_bytes(whole)
    format.load(directory)


def test_a_missing_file_is_named_and_files_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    one, two = save(tmp_path, 1), save(tmp_path, 2)
    for name in sorted(snapshot(one)):
        copy = tmp_path / f"copy-{name}"
        shutil.copytree(one, copy)
        (copy / name).unlink()
        with pytest.raises(DamagedError, match=f"{name}: missing"):
            format.load(copy)
    shutil.copy(two / "state.json", one / "state.json")
    with pytest.raises(DamagedError, match=r"state\.json"):
        format.load(one)


def test_foreign_contents_under_a_right_manifest_are_damage(tmp_path: Path) -> None:
    for name, data in {"model.safetensors": b"junk", "state.json": b"{", "state.json ": b"x"}.items():
        with files.new_directory(tmp_path / name) as partial:
            files.write_bytes(partial / name, data)
        if name != "state.json ":
            with pytest.raises(DamagedError) as raised:
                format.load(tmp_path / name)
            assert is_one_line(raised.value)
    with pytest.raises(SafetensorError):
        safetensors.torch.load(b"junk")


# ---- the newest intact one --------------------------------------------------------------------------


def test_the_newest_is_that_of_the_highest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    for step in (900, 1000, 100_000_000, 99_999_999):
        directory = save(tmp_path, step)
        for path in (directory, *directory.iterdir()):
            os.utime(path, (2e9 - 10 * step, 2e9 - 10 * step))
    assert format.steps(tmp_path) == [900, 1000, 99_999_999, 100_000_000]
    assert format.newest_intact(tmp_path) == (tmp_path / "step-100000000", [])


def test_junk_and_partial_names_are_ignored(tmp_path: Path) -> None:
    save(tmp_path, 5)
    junk = ["old-step-00000900", "step-00000900.partial-01234567", "step-00000900.damaged", "step-900"]
    junk += ["step-000000900", "step-00000900x", "step-٠٠٠٠٠٩٠٠", "step-00000900\n", "STEP-00000900"]
    for name in junk:
        (tmp_path / name).mkdir()
    assert format.newest_intact(tmp_path) == (tmp_path / "step-00000005", [])
    assert format.newest_intact(tmp_path / "absent") == (None, [])


def test_a_damaged_one_is_named_set_aside_and_the_previous_is_used(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    flip(tmp_path / "step-00000003" / "model.safetensors")
    (tmp_path / "step-00000002" / "optimizer.safetensors").unlink()
    found, messages = format.newest_intact(tmp_path)
    assert found == tmp_path / "step-00000001" and (tmp_path / "step-00000003").exists()
    (tmp_path / "step-00000003.damaged").mkdir()
    found, messages = format.newest_intact(tmp_path, set_aside=True)
    assert found == tmp_path / "step-00000001"
    assert "model.safetensors: contents do not match their checksum" in messages[0]
    assert "Kept aside as step-00000003.damaged-2. Using step-00000001." in messages[0]
    assert "optimizer.safetensors: missing" in messages[1]
    assert all("\n" not in line and len(line) < 300 for line in messages)
    assert len(snapshot(tmp_path / "step-00000003.damaged-2")) == 5
    save(tmp_path, 3)
    assert format.newest_intact(tmp_path) == (tmp_path / "step-00000003", [])


def test_a_renamed_checkpoint_is_not_taken_for_a_newer_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2).rename(tmp_path / "step-00000900")
    found, messages = format.newest_intact(tmp_path)
    assert found == tmp_path / "step-00000001" and "state.json: says step 2" in messages[0]


def test_a_moved_run_works(tmp_path: Path) -> None:
    save(tmp_path / "a" / "checkpoints", 7)
    (tmp_path / "a").rename(tmp_path / "b")
    found, messages = format.newest_intact(tmp_path / "b" / "checkpoints")
    assert found is not None and not messages and format.load(found).documents["state"] == {"step": 7}


def test_none_intact_is_said(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "state.json").unlink()
    found, messages = format.newest_intact(tmp_path)
    assert found is None and "No intact checkpoint is left." in messages[0]


# ---- interruption -----------------------------------------------------------------------------------


def test_killed_at_any_operation_of_a_save_there_is_an_intact_checkpoint(tmp_path: Path) -> None:
    previous = save(tmp_path, 1)
    before = snapshot(previous)
    n, outcomes = 0, set()
    while kill_at(n, lambda: save(tmp_path, 2)):
        found, messages = format.newest_intact(tmp_path)
        assert found is not None and messages == []
        outcomes.add(found.name)
        assert snapshot(previous) == before
        format.load(found)
        files.remove_partials(tmp_path)
        if found != previous:
            files.remove(found)
        assert os.listdir(tmp_path) == [previous.name]
        n += 1
    assert n > 15 and outcomes == {"step-00000001", "step-00000002"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_any_failing_operation_of_a_save_leaves_the_previous_one(tmp_path: Path, number: int) -> None:
    previous = save(tmp_path, 1)
    before = snapshot(previous)
    total = count_operations(lambda: save(tmp_path, 2))
    files.remove(tmp_path / "step-00000002")
    for n in range(total):
        with faults(n, disk_error(number)), pytest.raises(ResourceError) as raised:
            save(tmp_path, 2)
        assert is_one_line(raised.value) and "step-00000002" in str(raised.value)
        found, messages = format.newest_intact(tmp_path)
        assert found is not None and messages == [] and snapshot(previous) == before
        if found != previous:
            files.remove(found)
        assert os.listdir(tmp_path) == [previous.name]


def test_a_disk_without_room_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adm.runtime import _disk

    monkeypatch.setattr(_disk, "free_bytes", lambda path: 100)
    with faults() as counter, pytest.raises(ResourceError, match=r"need \d+ bytes, 100 bytes free"):
        save(tmp_path, 1)
    assert counter.calls == []


def test_saving_in_place_would_lose_the_checkpoint(tmp_path: Path) -> None:
    """The twin: torch.save over the previous file, killed half-way, leaves none."""
    path = tmp_path / "model.pt"
    torch.save(TENSORS["model"], path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RuntimeError):
        torch.load(path)


# ---- retention --------------------------------------------------------------------------------------


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step)
    assert format.retain(tmp_path, 3) == ["step-00000003", "step-00000002", "step-00000001"]
    assert format.steps(tmp_path) == [4, 5, 6]
    assert format.retain(tmp_path, 3) == []
    with pytest.raises(UsageError, match="at least 2"):
        format.retain(tmp_path, 1)


def test_retention_stops_when_the_newest_cannot_be_read_back(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    flip(tmp_path / "step-00000004" / "model.safetensors")
    with pytest.raises(DamagedError, match="step-00000004"):
        format.retain(tmp_path, 2)
    assert format.steps(tmp_path) == [1, 2, 3, 4]


def test_retention_leaves_two_intact_ones(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    for step in (3, 4):
        flip(tmp_path / format.step_name(step) / "model.safetensors")
    assert format.retain(tmp_path, 2) == ["step-00000001"]
    assert format.steps(tmp_path) == [2, 3, 4, 5]


def test_killed_while_deleting_two_intact_ones_stay(tmp_path: Path) -> None:
    n = 0
    while True:
        directory = tmp_path / f"run{n}"
        for step in (1, 2, 3, 4):
            save(directory, step)
        killed = kill_at(n, lambda directory=directory: format.retain(directory, 2))
        found, messages = format.newest_intact(directory)
        assert found == directory / "step-00000004" and messages == []
        assert format.steps(directory)[-2:] == [3, 4]
        if not killed:
            break
        n += 5
    assert n > 10


def test_tensors_that_have_no_place_are_refused(tmp_path: Path) -> None:
    refused: list[Callable[[], Tensor]] = [
        lambda: torch.ones(2, dtype=torch.complex64),
        lambda: torch.eye(2).to_sparse(),
    ]
    for make in refused:
        with pytest.raises(ValueError, match="no place"):
            format.save(tmp_path / "c", tensors={"m": {"x": make()}}, documents={})
    assert os.listdir(tmp_path) == []
