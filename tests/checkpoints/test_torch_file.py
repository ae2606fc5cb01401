"""What the closed reader reads is what the library reads, to the bit; what it opens is told by its contents."""

from __future__ import annotations

import copy
import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from adm.checkpoints import _foreign_file
from adm.checkpoints.torch_file import read_state_dict, read_torch_file
from adm.runtime.errors import DamagedError, DataError
from checkpoints.hostile_files import (
    DATA,
    LEGACY,
    MAGIC,
    VALID,
    call,
    hand_zip,
    legacy,
    many,
    name,
    number,
    numbers,
    plain_zip,
    program,
    storage,
    tensor,
    text,
    torch_zip,
)
from checkpoints.mutated_files import saved, weights
from golden_weights import DIFFUSION

FORMATS = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


def equal(ours: Any, theirs: Any) -> bool:
    """Same types, same order, same numbers to the bit; a parameter counts as its tensor."""
    if isinstance(theirs, Tensor):
        return (
            type(ours) is Tensor
            and (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
            and bits(ours) == bits(theirs)
        )
    if type(ours) is not type(theirs):
        return False
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(equal(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return bool(ours == theirs)


def bits(value: Tensor) -> bytes:
    return value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def check(data: bytes, path: Path) -> Any:
    """Reads the file with both and compares; returns ours."""
    path.write_bytes(data)
    ours = read_torch_file(path)
    assert equal(ours, torch.load(path, map_location="cpu", weights_only=True))
    return ours


# ---- what is equal to torch.load -------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_to_the_bit_also_what_is_no_number(dtype: torch.dtype, new: bool, tmp_path: Path) -> None:
    raw = torch.arange(256, dtype=torch.uint8).repeat(16)
    value = (raw % 2).bool() if dtype == torch.bool else raw.view(dtype)
    content = check(saved({"a": value.reshape(4, -1), "b": value[1]}, new), tmp_path / "a.pt")
    assert content["a"].dtype == dtype


@FORMATS
def test_views_empty_tensors_single_numbers_and_parameters(new: bool, tmp_path: Path) -> None:
    base = torch.arange(120.0).reshape(4, 5, 6)
    content = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "part": base[1:3, ::2, 1::3],
        "end": base[3, 4, 5],
        "empty": torch.empty(0, 3, 2),
        "empty part": base[2:2],
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "frozen": torch.nn.Parameter(torch.randn(3), requires_grad=False),
        "nested": [
            (torch.ones(1), None, True),
            {"x": -(2**40), "y": 2.5e-300, 3: "ü 😀"},
            torch.Size([2, 3]),
            torch.float16,
        ],
    }
    assert not check(saved(content, new), tmp_path / "a.pt")["parameter"].requires_grad


@FORMATS
def test_shared_numbers_are_shared_again(new: bool, tmp_path: Path) -> None:
    content = check(saved(weights(), new), tmp_path / "a.pt")
    content["input.weight"][3, 0] = 17.0
    assert content["input.transposed"][0, 3] == 17.0 and content["input.row"][0] == 17.0


@FORMATS
def test_a_module_and_its_optimizer_after_a_step(new: bool, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    state = check(saved(model.state_dict(), new), tmp_path / "model.pt")
    assert type(state) is OrderedDict and not hasattr(state, "_metadata")
    check(saved(optimizer.state_dict(), new), tmp_path / "opt.pt")
    again = torch.optim.AdamW(copy.deepcopy(model).parameters())
    again.load_state_dict(read_torch_file(tmp_path / "opt.pt"))
    assert again.param_groups[0]["lr"] == 1e-3


def test_the_recorded_file_of_the_released_code(tmp_path: Path) -> None:
    path = DIFFUSION / "unet_cond_learned_legacy.pt"
    assert equal(read_torch_file(path), torch.load(path, weights_only=True))


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_other_protocols_of_pickle(protocol: int, new: bool, tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(weights(), stream, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    (tmp_path / "a.pt").write_bytes(stream.getvalue())
    assert equal(read_torch_file(tmp_path / "a.pt"), torch.load(tmp_path / "a.pt", weights_only=False))


def test_a_zip_of_a_big_endian_machine(tmp_path: Path) -> None:
    """As such a machine writes it: each number's bytes the other way round, and a member that says so."""
    content = {str(dtype): torch.arange(1, 7).to(dtype) for dtype in DTYPES}
    with zipfile.ZipFile(io.BytesIO(saved(content))) as archive:
        members = [(member, archive.read(member)) for member in archive.namelist()]
    swapped = []
    for member, data in members:
        if "/data/" in member:
            size = DTYPES[int(member.rpartition("/")[2])].itemsize
            data = b"".join(data[at : at + size][::-1] for at in range(0, len(data), size))
        swapped.append((member, b"big" if member.endswith("byteorder") else data))
    assert equal(check(plain_zip(swapped), tmp_path / "big.pt"), content)


def test_a_zip_packed_anew_by_another_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved(weights()))) as archive:
        members = [(member, archive.read(member)) for member in reversed(archive.namelist())]
    check(plain_zip(members), tmp_path / "a.pt")


def test_a_zip_with_sizes_of_64_bits(tmp_path: Path) -> None:
    """As for members above 4 GiB: an extra field in the header, and sizes of 8 bytes behind the data."""
    stream = io.BytesIO()
    with zipfile.ZipFile(Unseekable(stream), "w") as archive:
        for member, data in [("data.pkl", VALID), ("data/0", DATA["0"]), ("version", b"3\n")]:
            with archive.open(f"a/{member}", "w", force_zip64=True) as target:
                target.write(data)
    assert stream.getvalue().count(b"PK\7\x08") == 3
    check(stream.getvalue(), tmp_path / "a.pt")


class Unseekable:
    """A stream on which zipfile writes sizes behind the data."""

    def __init__(self, stream: io.BytesIO) -> None:
        self.write, self.flush = stream.write, stream.flush


# ---- files older than torch.load writes today ------------------------------------------------------


def test_parts_of_storages_and_names_of_python_2(tmp_path: Path) -> None:
    """torch < 0.4 wrote a view as a part of a storage; Python 2 wrote text as bytes."""
    part = storage(legacy=True).replace(b"Nt", many(text("v"), number(2), number(4)) + b"t")
    body = program(b"}(" + b"U\x01w" + tensor((2, 2), (2, 1), at=part) + b"u")
    content = check(legacy(body, DATA), tmp_path / "a.pt")
    assert content["w"].tolist() == [[2.0, 3.0], [4.0, 5.0]]


def test_an_ordered_dict_of_python_2_and_a_tensor_of_torch_0_1(tmp_path: Path) -> None:
    old = call(
        name("torch._utils", "_rebuild_tensor"), storage(legacy=True), number(0), numbers((2, 3)), numbers((3, 1))
    )
    body = program(name("collections", "OrderedDict") + b"](]" + text("w") + b"a" + old + b"ae\x85R")
    (tmp_path / "a.pt").write_bytes(legacy(body, DATA))
    content = read_torch_file(tmp_path / "a.pt")
    assert type(content) is OrderedDict and content["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert (tmp_path / "a.pt").read_bytes().startswith(MAGIC)


# ---- safetensors -----------------------------------------------------------------------------------


def test_safetensors_equal_the_library(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.arange(24).to(dtype).reshape(2, 3, 4) for dtype in DTYPES}
    tensors |= {"empty": torch.zeros(0, 3), "number": torch.tensor(3.5)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    ours, theirs = read_state_dict(tmp_path / "a.safetensors"), safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert set(ours) == set(theirs) and all(equal(ours[key], theirs[key]) for key in theirs)


def test_a_file_is_known_by_its_contents_whatever_its_name(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "b.safetensors").write_bytes(saved({"a": torch.ones(2)}))
    (tmp_path / "c").write_bytes(saved({"a": torch.ones(2)}, new=False))
    assert all(read_state_dict(tmp_path / file)["a"].tolist() == [1, 1] for file in ("a.pt", "b.safetensors", "c"))


# ---- which of its contents are weights -------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"a": torch.ones(2)}, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
        {"ema": {"a": torch.ones(2)}},
        {"module.a": torch.ones(2)},
        {"_orig_mod.module.a": torch.ones(2)},
        {"model": {"module._orig_mod.a": torch.ones(2)}, "step": torch.tensor(3)},
    ],
    ids=["state_dict", "ema", "parallel", "compiled", "both"],
)
def test_one_state_dict_inside_is_found_and_a_common_prefix_taken_off(content: object, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved(content))
    weights = read_state_dict(tmp_path / "a.pt")
    assert list(weights) == ["a"] and weights["a"].tolist() == [1.0, 1.0]


def test_a_prefix_that_is_not_common_or_all_there_is_stays(tmp_path: Path) -> None:
    for names in (["module.a", "b"], ["module.", "module.a"]):
        (tmp_path / "a.pt").write_bytes(saved({name: torch.ones(1) for name in names}))
        assert list(read_state_dict(tmp_path / "a.pt")) == names


def test_half_precision_stays_half(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"a": torch.ones(2).half(), "b": torch.ones(2).bfloat16()}))
    assert [value.dtype for value in read_state_dict(tmp_path / "a.pt").values()] == [torch.float16, torch.bfloat16]


# ---- errors ----------------------------------------------------------------------------------------


def test_no_file_is_a_matter_of_the_data(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path / "none" / "a.pt", Path("a\0b.pt")):
        with pytest.raises(DataError, match=r"no such file|zero byte") as raised:
            read_state_dict(path)
        assert "\n" not in str(raised.value)
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    with pytest.raises(DataError):
        read_state_dict(tmp_path / "loop.pt")


def test_a_module_saved_whole_is_named_and_every_foreign_name_listed(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved(torch.nn.Linear(2, 2)))
    with pytest.raises(DamagedError, match=r"torch\.nn\.modules\.linear\.Linear.*whole module.*state_dict"):
        read_state_dict(tmp_path / "a.pt")


def test_the_environment_cannot_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.load obeys this variable, which makes it run what it reads."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (tmp_path / "a.pt").write_bytes(saved(torch.nn.Linear(2, 2)))
    with pytest.raises(DamagedError, match="asks to call"):
        read_state_dict(tmp_path / "a.pt")


def test_a_bare_pickle_of_plain_values_is_read_and_one_with_tensors_named(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"lr": 0.5, "name": "x"}, 2))
    assert read_torch_file(tmp_path / "a.pkl") == {"lr": 0.5, "name": "x"}
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"a": torch.ones(2)}, 2))
    with pytest.raises(DamagedError, match=r"pickle\.dump"):
        read_torch_file(tmp_path / "b.pkl")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(saved({"a": torch.ones(100_000)}))
    inner = _foreign_file.ForeignFile.read_into

    def shrinking(file: Any, start: int, target: memoryview) -> None:
        if len(target) > 100_000:
            path.write_bytes(b"PK")
        inner(file, start, target)

    monkeypatch.setattr(_foreign_file.ForeignFile, "read_into", shrinking)
    with pytest.raises(DamagedError, match="changed while it was read"):
        read_state_dict(path)


def test_the_header_of_safetensors_is_what_is_written_there(tmp_path: Path) -> None:
    """The hand-made headers of the hostile set are refused for what is wrong in them: a right one is read."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1, 2))
    assert read_state_dict(tmp_path / "a.safetensors")["a"].tolist() == [1.0, 2.0]


def test_the_hand_made_files_are_refused_for_what_is_wrong_in_them(tmp_path: Path) -> None:
    """The same hands make files that both readers read."""
    for data in (torch_zip(), hand_zip(), LEGACY):
        assert check(data, tmp_path / "a.pt")["weight"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
