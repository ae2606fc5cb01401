"""`adm likelihood`: which images, which bound, and what is said of both."""

import json

import pytest

LIKELIHOOD = ["likelihood", "model", "digits:test", "--num", "3", "--steps", "2", "--device", "cpu"]


def test_what_the_number_is_of_is_printed_beside_it(runs, adm_command):
    result = adm_command(*LIKELIHOOD)
    assert result.code == 0
    assert "3 of 599 images, spread evenly; 2 of 1000 timesteps: another bound than that of all" in result.out
    assert "cropped" not in result.out


@pytest.mark.parametrize("name", ["flat", "photos"])
def test_images_of_another_size_are_said_to_be_changed(name, runs, tmp_path, adm_command):
    model = "photo-model" if name == "photos" else "unconditional"
    result = adm_command("likelihood", model, name, "--steps", "2", "--device", "cpu")
    assert result.code == 0
    changed = "cropped and scaled to 8x8, so not of the data as they are" in result.out
    assert changed == (name == "flat")  # 8x12, which the photo-model has seen as they are


def test_a_file_that_exists_is_refused_before_any_work(runs, tmp_path, adm_command):
    out = tmp_path / "bits.json"
    assert adm_command(*LIKELIHOOD, "--out", out).code == 0
    before = out.read_bytes()
    assert json.loads(before)["images"].startswith("spread evenly")
    result = adm_command(*LIKELIHOOD, "--out", out)
    assert (result.code, "bits.json exists. Choose another --out" in result.problem) == (2, True)
    assert out.read_bytes() == before
