"""`adm sample`: files, labels, components by name, and going on where it stopped."""

import csv
import json
import re
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import adm
from adm.data import SampleSet
from adm.runtime import lookup
from adm.runtime.randomness import MAX_SEED
from adm.studies.choices import full_spec
from adm.training import run as training_run
from conftest import TINY

STEPS = ["--steps", "2", "--device", "cpu"]


def rows(directory):
    with open(directory / "labels.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(directory):
    return np.stack([np.atleast_3d(np.asarray(Image.open(path))) for path in sorted(directory.glob("*.png"))])


def test_a_directory_holds_the_images_that_generate_makes_their_labels_and_the_request(runs, tmp_path, adm_command):
    out = tmp_path / "new" / "set"
    result = adm_command("sample", "model", "--out", out, "--labels", "3,7*2", "--num", 5, "--seed", 40, *STEPS)
    assert (result.code, result.err) == (0, "")
    assert result.out.strip().endswith("set-overview.png)") and str(out) in result.out
    documents = ["cost.json", "labels.csv", "request.json"]
    assert sorted(p.name for p in out.iterdir()) == [*(f"00000{k}.png" for k in range(5)), *documents]
    wanted = [3, 7, 7, 3, 7]
    assert rows(out) == [
        {"file": f"00000{k}.png", "label": str(label), "class": str(label), "seed": str(40 + k)}
        for k, label in enumerate(wanted)
    ]
    direct = adm.generate("model", wanted, steps=2, sampler="ddpm", seed=40)
    np.testing.assert_array_equal(pixels(out), direct)
    request = json.loads((out / "request.json").read_text())
    assert (request["seed"], request["labels"], request["image_shape"]) == (40, "3,7*2", [1, 8, 8])
    with Image.open(tmp_path / "new" / "set-overview.png") as picture:
        assert min(picture.size) >= 64


def test_an_npz_has_openais_layout(runs, tmp_path, adm_command):
    out = tmp_path / "x.npz"
    result = adm_command("sample", "model", "--out", out, "--labels", "1,2", *STEPS)
    assert (result.code, result.err) == (0, "2 network evaluations an image\n")
    assert result.out == f"{out}\n"
    with np.load(out, allow_pickle=False) as arrays:
        assert sorted(arrays) == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(arrays["arr_0"], adm.generate("model", [1, 2], steps=2, sampler="ddpm"))
        assert (arrays["arr_1"].dtype, arrays["arr_1"].tolist()) == (np.int64, [1, 2])


def test_without_labels_an_npz_has_only_images(runs, tmp_path, adm_command):
    assert adm_command("sample", "unconditional", "--out", tmp_path / "x.npz", "--num", 3, *STEPS).code == 0
    with np.load(tmp_path / "x.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"arr_0": (3, 8, 8, 1)}


def test_every_class_takes_its_turn_when_no_label_is_given(runs, tmp_path, adm_command):
    assert adm_command("sample", "photo-model", "--out", tmp_path / "s", "--num", 3, *STEPS).code == 0
    assert [row["class"] for row in rows(tmp_path / "s")] == ["a b", "ü", "a b"]
    assert pixels(tmp_path / "s").shape == (3, 8, 12, 3)


def test_classes_are_named_or_numbered(runs, tmp_path, adm_command):
    for labels, expected in (("ü,a b", ["1", "0"]), ("1,0", ["1", "0"]), ("a b*2", ["0", "0"])):
        out = tmp_path / labels
        assert adm_command("sample", "photo-model", "--out", out, "--labels", labels, *STEPS).code == 0
        assert [row["label"] for row in rows(out)] == expected


def test_a_guide_gives_an_unconditional_model_its_labels(runs, tmp_path, adm_command):
    words = ["sample", "unconditional", "--labels", "0,1", *STEPS, "--out"]
    guided = ["--guidance", "classifier:classifier=guide,scale=50"]
    assert adm_command(*words, tmp_path / "guided", *guided).code == 0
    assert [row["class"] for row in rows(tmp_path / "guided")] == ["0", "1"]
    assert adm_command("sample", "unconditional", "--num", 2, *STEPS, "--out", tmp_path / "plain").code == 0
    assert (pixels(tmp_path / "guided") != pixels(tmp_path / "plain")).any()


def test_the_same_command_makes_only_what_is_missing_with_equal_bytes(runs, tmp_path, adm_command, monkeypatch):
    out = tmp_path / "s"
    words = ["sample", "model", "--out", out, "--num", 5, "--set", "batch_size=2", *STEPS]
    assert adm_command(*words).code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    made, add = [], SampleSet.add
    monkeypatch.setattr(SampleSet, "add", lambda self, k, image: (made.append(k), add(self, k, image)))
    assert adm_command(*words).code == 0 and made == []
    (out / "000001.png").unlink()
    (out / "000004.png").unlink()
    (out / "labels.csv").unlink()
    result = adm_command(*words)
    assert "3 of 5 images are there" in result.err and made == [1, 4]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_set_can_grow_and_is_not_cut_back(runs, tmp_path, adm_command):
    out = tmp_path / "s"
    words = ["sample", "model", "--out", out, *STEPS, "--num"]
    assert adm_command(*words, 2).code == 0
    first = (out / "000001.png").read_bytes()
    assert adm_command(*words, 6).code == 0
    assert (out / "000001.png").read_bytes() == first and len(rows(out)) == 6
    assert np.abs(pixels(out).astype(int) - adm.generate("model", num=6, steps=2, sampler="ddpm")).max() <= 1
    assert adm_command(*words, 1).code == 0
    assert len(rows(out)) == 6


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--seed", "1"], "seed"),
        (["--steps", "4"], "steps"),
        (["--sampler", "ddim"], "sampler"),
        (["--guidance", "classifier:classifier=guide"], "guidance"),
        (["--labels", "1"], "labels"),
        (["--set", "weights=model"], "weights"),
        (["--set", "batch_size=3"], "batch_size"),
    ],
)
def test_a_set_made_with_other_settings_is_refused_by_name(words, name, runs, tmp_path, adm_command):
    base = ["sample", "model", "--out", tmp_path / "s", "--num", 1, *STEPS]
    assert adm_command(*base).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    result = adm_command(*base, *words)
    assert (result.code, f"was made with {name}=" in result.problem) == (2, True)
    assert "Choose another --out" in result.problem
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before


def test_a_guide_that_was_trained_again_is_another_request(runs, tmp_path, adm_command, monkeypatch):
    guide = shutil.copytree(runs / "guide", tmp_path / "guide")
    words = [
        "sample",
        "model",
        "--out",
        tmp_path / "s",
        "--num",
        1,
        *STEPS,
        "--guidance",
        f"classifier:classifier={guide}",
    ]
    assert adm_command(*words).code == 0
    shutil.rmtree(guide)
    monkeypatch.setattr(training_run, "FEW", 8)
    again = ["train", "classifier", "--data", "digits", "--out", guide, "--steps", 1, "--batch", 2, *TINY]
    assert adm_command(*again).code == 0
    assert "guidance_sha256" in adm_command(*words).problem


def test_a_request_without_images_yet_gives_way(runs, tmp_path, adm_command):
    words = ["sample", "model", "--out", tmp_path / "s", "--num", 1, *STEPS]
    assert adm_command(*words).code == 0
    (tmp_path / "s" / "000000.png").unlink()
    (tmp_path / "s" / "labels.csv").unlink()
    assert adm_command(*words, "--seed", 7).code == 0
    assert [row["seed"] for row in rows(tmp_path / "s")] == ["7"]
    assert costs(tmp_path / "s")["images"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_between_batches_it_exits_75_and_the_same_command_ends_with_equal_bytes(
    number, runs, tmp_path, adm_command, monkeypatch
):
    words = ["sample", "model", "--num", 6, "--set", "batch_size=2", *STEPS, "--out"]
    assert adm_command(*words, tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        add = SampleSet.add

        def interrupted(self, k, image):
            if k == 3:
                signal.raise_signal(number)
            add(self, k, image)

        patch.setattr(SampleSet, "add", interrupted)
        result = adm_command(*words, tmp_path / "s")
    assert (result.code, "stopped after 4 of 6 images; the same command continues" in result.problem) == (75, True)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert adm_command(*words, tmp_path / "s").code == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "s" / path.name).read_bytes() == path.read_bytes()


def test_an_npz_that_is_stopped_says_that_it_starts_again(runs, tmp_path, adm_command, monkeypatch):
    monkeypatch.setattr("adm.studies.generate.to_uint8", lambda x: (signal.raise_signal(signal.SIGTERM), x)[1])
    words = ["sample", "model", "--num", 4, "--set", "batch_size=2", *STEPS, "--out", tmp_path / "x.npz"]
    result = adm_command(*words)
    assert (result.code, "the same command starts again" in result.problem) == (75, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("signals", "how"), [(1, "stopped after 5"), (2, "interrupted after 4")], ids=["asked", "insisted"]
)
def test_stopped_or_interrupted_it_says_how_many_images_are_there(
    signals, how, runs, tmp_path, adm_command, monkeypatch
):
    out = tmp_path / "s"
    words = ["sample", "model", "--out", out, "--num", 6, "--set", "batch_size=2", *STEPS]
    assert adm_command(*words).code == 0
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    for k in range(3):  # three of the six are left
        (out / f"00000{k}.png").unlink()
    add = SampleSet.add

    def interrupted(self, k, image):
        if k == 1:
            for _ in range(signals):
                signal.raise_signal(signal.SIGINT)
        add(self, k, image)

    with monkeypatch.context() as patch:
        patch.setattr(SampleSet, "add", interrupted)
        result = adm_command(*words)
    assert (result.code, result.last) == (75, f"adm: {how} of 6 images; the same command continues.")
    assert adm_command(*words).code == 0
    pictures = [name for name in whole if name.endswith(".png")]
    assert {name: (out / name).read_bytes() for name in pictures} == {name: whole[name] for name in pictures}


def test_a_signal_during_the_last_batch_comes_too_late(runs, tmp_path, adm_command, monkeypatch):
    add = SampleSet.add
    monkeypatch.setattr(SampleSet, "add", lambda self, k, x: (k == 1 and signal.raise_signal(2), add(self, k, x)))
    result = adm_command("sample", "model", "--out", tmp_path / "s", "--num", 2, *STEPS)
    assert (result.code, result.err, len(rows(tmp_path / "s"))) == (0, "", 2)


def test_an_interrupted_npz_says_how_many_were_made_in_vain(runs, tmp_path, adm_command, monkeypatch):
    made = []

    def interrupted(x):
        made.append(len(x))
        if len(made) == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return adm.data.to_uint8(x)

    monkeypatch.setattr("adm.studies.generate.to_uint8", interrupted)
    words = ["sample", "model", "--num", 6, "--set", "batch_size=2", *STEPS, "--out", tmp_path / "x.npz"]
    result = adm_command(*words)
    assert (result.code, "interrupted after 2 of 6 images; the same command starts again" in result.problem) == (
        75,
        True,
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.png", "X.PNG", "x.jpg", "x.jpeg", "x.webp", "x.GIF"])
def test_a_pictures_name_is_refused_but_for_a_set_that_has_it_already(name, runs, tmp_path, adm_command):
    words = ["sample", "model", "--num", 1, *STEPS, "--out"]
    result = adm_command(*words, tmp_path / name)
    assert result.code == 2 and "a picture's name, but --out is the name of a directory" in result.problem
    assert result.problem.endswith(f"Write --out {tmp_path / 'x'}.".replace("/x.", f"/{name[0]}."))
    assert list(tmp_path.iterdir()) == []
    assert adm_command(*words, tmp_path / "begun").code == 0
    (tmp_path / "begun").rename(tmp_path / name)
    assert adm_command("sample", "model", "--num", 2, *STEPS, "--out", tmp_path / name).code == 0


def test_an_npz_may_be_shouted(runs, tmp_path, adm_command):
    assert adm_command("sample", "model", "--num", 1, *STEPS, "--out", tmp_path / "X.NPZ").code == 0
    assert np.load(tmp_path / "X.NPZ")["arr_0"].shape == (1, 8, 8, 1)


def test_third_party_components_work_by_their_dotted_names(runs, tmp_path, adm_command, monkeypatch):
    package = tmp_path / "lab" / "thirdparty_lab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "jump.py").write_text(
        "from dataclasses import dataclass\n"
        "__all__ = ['Jump']\n"
        "@dataclass(frozen=True)\n"
        "class Jump:\n"
        "    to: float = 0.0\n"
        "    def init(self):\n        return None\n"
        "    def step(self, denoise, x_t, link, noise, state):\n"
        "        return x_t * 0 + self.to, None\n"
    )
    (package / "still.py").write_text(
        "from dataclasses import replace\n"
        "__all__ = ['Still']\n"
        "class Still:\n"
        "    stage = 'mix'\n"
        "    def __init__(self, value: float):\n        self.value = value\n"
        "    def __call__(self, denoiser):\n"
        "        class Denoiser:\n"
        "            schedule, image_shape, device = denoiser.schedule, denoiser.image_shape, denoiser.device\n"
        "            def __call__(this, x_t, t, cond):\n"
        "                p = denoiser(x_t, t, cond)\n"
        "                return replace(p, x0=p.x0 * 0 + self.value)\n"
        "        return Denoiser()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "lab"))
    words = ["sample", "model", "--num", 1, *STEPS, "--out"]
    assert adm_command(*words, tmp_path / "a", "--sampler", "thirdparty_lab.jump:to=-1").code == 0
    assert (pixels(tmp_path / "a") == 0).all()
    assert adm_command(*words, tmp_path / "b", "--sampler", "thirdparty_lab.jump.Jump:to=1").code == 0
    assert (pixels(tmp_path / "b") == 255).all()
    still = ["--guidance", "thirdparty_lab.still:value=0.5", "--sampler", "ddim"]
    assert adm_command(*words, tmp_path / "c", *still).code == 0
    assert (pixels(tmp_path / "c") == 191).all()
    result = adm_command(*words, tmp_path / "d", "--sampler", "thirdparty_lab.jump:too=1")
    assert (result.code, "no option 'too'; did you mean 'to'" in result.problem) == (2, True)
    result = adm_command(*words, tmp_path / "d", "--guidance", "thirdparty_lab.still")
    assert (result.code, "needs 'value'" in result.problem) == (2, True)


def test_the_largest_seed_is_a_seed(runs, tmp_path, adm_command):
    assert adm_command("sample", "model", "--out", tmp_path / "s", "--num", 1, "--seed", MAX_SEED, *STEPS).code == 0
    assert rows(tmp_path / "s")[0]["seed"] == str(MAX_SEED)


def test_weights_and_precision_are_settings(runs, tmp_path, adm_command):
    for name, setting in (("model", "weights=model"), ("bf16", "precision=bfloat16")):
        assert adm_command("sample", "model", "--out", tmp_path / name, "--num", 1, *STEPS, "--set", setting).code == 0
    assert json.loads((tmp_path / "bf16" / "request.json").read_text())["precision"] == "bfloat16"


def test_what_a_killed_process_leaves_behind_does_not_block_the_set(runs, tmp_path, adm_command):
    out = tmp_path / "s"
    command = ["sample", "model", "--out", out, "--num", 2, *STEPS]
    out.mkdir()
    (out / ".request.json.partial-0badc0de").write_text("{")
    assert adm_command(*command).code == 0
    (out / ".000001.png.partial-0badc0de").write_bytes(b"half")
    (out / "000001.png").unlink()
    assert adm_command(*command).code == 0
    names = ["000000.png", "000001.png", "cost.json", "labels.csv", "request.json"]
    assert sorted(p.name for p in out.iterdir()) == names


def test_labels_follow_a_set_that_grew_and_was_killed_before_they_were_written(runs, tmp_path, adm_command):
    out = tmp_path / "s"
    command = ["sample", "model", "--out", out, "--set", "batch_size=2", *STEPS, "--num"]
    assert adm_command(*command, 4).code == 0
    (out / "labels.csv").write_text("file,label,class,seed\n000000.png,0,0,0\n")
    assert adm_command(*command, 4).code == 0
    assert len(rows(out)) == 4
    assert adm_command(*command, 2).code == 0
    assert len(rows(out)) == 4


def test_nothing_that_is_there_is_overwritten(runs, tmp_path, adm_command, monkeypatch):
    (tmp_path / "s.png").write_text("mine")
    (tmp_path / "x.npz").write_text("mine")
    assert adm_command("sample", "model", "--out", tmp_path / "s", "--num", 1, *STEPS).code == 0
    assert (tmp_path / "s.png").read_text() == "mine"
    result = adm_command("sample", "model", "--out", tmp_path / "x.npz", "--num", 1, *STEPS)
    assert result.code == 2 and "exists" in result.problem and (tmp_path / "x.npz").read_text() == "mine"


def test_a_second_writer_of_a_set_is_refused(runs, tmp_path, adm_command):
    out = tmp_path / "s"
    assert adm_command("sample", "model", "--out", out, "--num", 1, *STEPS).code == 0
    request = json.loads((out / "request.json").read_text())
    with SampleSet.open(out, request):
        result = adm_command("sample", "model", "--out", out, "--num", 2, *STEPS)
    assert result.code == 5 and "is in use by pid" in result.problem


class TestOfARunThatTrainsOn:
    @pytest.fixture
    def begun(self, runs, tmp_path, adm_command):
        """A set of a run's second-last checkpoint's images, and then the run moved on."""
        run = shutil.copytree(runs / "model", tmp_path / "run")
        shutil.move(run / "checkpoints" / "step-00000004", tmp_path / "later")
        words = ["--out", tmp_path / "s", "--num", 2, *STEPS]
        assert adm_command("sample", run, *words).code == 0
        shutil.move(tmp_path / "later", run / "checkpoints" / "step-00000004")
        return run, words

    def test_the_message_names_the_checkpoint_with_which_the_set_continues(self, begun, tmp_path, adm_command):
        run, words = begun
        (tmp_path / "s" / "000001.png").unlink()
        result = adm_command("sample", run, *words)
        older = run / "checkpoints" / "step-00000002"
        assert (result.code, str(older) in result.problem, "you asked for" in result.problem) == (2, True, False)
        assert result.problem.startswith("adm: ") and "has trained on to step-00000004" in result.problem
        assert adm_command("sample", older, *words).code == 0  # the remedy
        assert (tmp_path / "s" / "000001.png").exists()

    def test_a_checkpoint_that_is_gone_is_not_recommended(self, begun, tmp_path, adm_command):
        run, words = begun
        shutil.rmtree(run / "checkpoints" / "step-00000002")
        result = adm_command("sample", run, *words)
        assert (result.code, "does not keep. Choose another --out" in result.problem) == (2, True)

    def test_a_set_of_the_same_checkpoint_continues(self, begun, tmp_path, adm_command):
        run, words = begun
        assert adm_command("sample", run / "checkpoints" / "step-00000002", *words).code == 0


def test_the_last_line_counts_says_the_cost_and_names_the_overview(runs, tmp_path, adm_command):
    result = adm_command("sample", "model", "--out", tmp_path / "s", "--num", 1, *STEPS)
    said = "2 network evaluations an image"
    assert result.out == f"{tmp_path / 's'} (1 image; {said}; overview: {tmp_path / 's-overview.png'})\n"
    words = ["--guidance", "classifier:classifier=guide,scale=2", "--sampler", "heun"]
    guided = adm_command("sample", "unconditional", "--out", tmp_path / "g", "--num", 1, *STEPS, *words)
    assert "; 3 network and 3 classifier evaluations an image, 3 with gradients; overview" in guided.out


def costs(directory):
    return json.loads((directory / "cost.json").read_text())


def test_what_images_cost_lies_beside_them_and_grows_with_the_set(runs, tmp_path, adm_command):
    out = tmp_path / "s"
    words = ["sample", "model", "--out", out, "--guidance", "autoguidance:model=unconditional", *STEPS, "--num"]
    assert adm_command(*words, 3).code == 0
    each = {"network": 4.0, "classifier": 0.0, "gradients": 0.0}
    assert costs(out) == {"images": 3, **each}
    assert adm_command(*words, 5).code == 0
    assert costs(out) == {"images": 5, **each}
    (out / "000001.png").unlink()
    again = adm_command(*words, 5)
    assert costs(out) == {"images": 5, **each} and "; 4 network evaluations an image; overview" in again.out
    (out / "cost.json").unlink()  # a set from before there were such files
    (out / "000002.png").unlink()
    assert adm_command(*words, 5).code == 0
    assert costs(out) == {"images": 1, **each}
    (out / "cost.json").write_text("{")
    assert adm_command(*words, 6).code == 0
    assert costs(out) == {"images": 1, **each}


def test_images_of_different_cost_are_averaged(tmp_path):
    image = np.zeros((2, 2, 1), np.uint8)
    for numbers, network, mean in (([0, 1], 10.0, 10.0), ([2], 16.0, 12.0)):
        with SampleSet.open(tmp_path / "s", {}) as samples:
            for k in numbers:
                samples.add(k, image)
            samples.add_cost(len(numbers), {"network": network})
            assert samples.cost() == {"images": numbers[-1] + 1, "network": mean}


def test_a_grid_is_recorded_and_another_one_refused_by_name(runs, tmp_path, adm_command):
    out = tmp_path / "s"
    words = ["sample", "model", "--out", out, "--num", 1, "--device", "cpu", "--sampler", "dpm_solver_2m", "--steps"]
    assert adm_command(*words, "karras:5").code == 0
    request = json.loads((out / "request.json").read_text())
    timesteps = adm.DPMSolver2M().timesteps(adm.load("model").schedule, 5)  # log-SNR
    assert (request["steps"], request["grid"]) == (5, "karras:5") and request["timesteps"] != timesteps
    assert adm_command(*words, "KARRAS: 5").code == 0
    for other, said in (
        ("even:5", "grid=karras:5, you asked for even:5"),
        ("5", "grid=karras:5, you asked for the sampler's own, 5 steps"),
        ("6", "steps=5"),
    ):
        result = adm_command(*words, other)
        assert result.code == 2 and f"was made with {said}" in result.problem


def test_a_set_of_the_samplers_own_grid_says_its_steps_when_another_is_asked_for(runs, tmp_path, adm_command):
    words = ["sample", "model", "--out", tmp_path / "s", "--num", 1, "--device", "cpu", "--steps"]
    assert adm_command(*words, "5").code == 0
    said = adm_command(*words, "karras:5").problem
    assert "was made with grid=the sampler's own, 5 steps, you asked for karras:5" in said


def test_a_grid_is_its_timesteps_whatever_it_is_called(runs, tmp_path, adm_command):
    words = ["sample", "model", "--out", tmp_path / "s", "--device", "cpu", "--num"]
    assert adm_command(*words, 1, "--steps", "ddim25").code == 0
    assert adm_command(*words, 2, "--steps", "strided:25").code == 0
    assert json.loads((tmp_path / "s" / "request.json").read_text())["grid"] == "ddim25"


@pytest.mark.parametrize(
    ("begun", "same", "other"),
    [
        ("dpm_solver_3m", ["dpm-solver-3m", "dpm_solver_3m:d2=published"], "dpm_solver_3m:d2=corrected"),
        ("heun:churn=2", ["heun:churn=2.0", "heun:churn_min=0,churn=2"], "heun:churn=3"),
        ("ddpm", ["ddpm:variance=model"], "ddpm:interpolation=linear"),
    ],
)
def test_samplers_that_are_the_same_in_other_words_continue_a_set(begun, same, other, runs, tmp_path, adm_command):
    out = tmp_path / "s"
    words = ["sample", "model", "--out", out, "--num", 1, *STEPS, "--sampler"]
    assert adm_command(*words, begun).code == 0
    request = json.loads((out / "request.json").read_text())
    assert request["sampler"] == begun and request["sampler_in_full"] == full_spec("sampling", begun) != begun
    before = {name: value for name, value in request.items() if name != "sampler_in_full"}  # as sets said it before
    for written in (request, before):
        (out / "request.json").write_text(json.dumps(written))
        for spec in (begun, *same):
            assert adm_command(*words, spec).code == 0
        refused = adm_command(*words, other)
        assert refused.code == 2 and "was made with sampler=" in refused.problem


def test_a_default_that_became_another_does_not_continue_a_set(runs, tmp_path, adm_command, monkeypatch):
    words = ["sample", "model", "--out", tmp_path / "s", "--num", 1, *STEPS, "--sampler"]
    assert adm_command(*words, "dpm_solver_3m").code == 0
    monkeypatch.setattr(adm.DPMSolver3M.__init__, "__defaults__", ("corrected", 1.0))
    assert adm_command(*words, "dpm_solver_3m").code == 2
    assert adm_command(*words, "dpm_solver_3m:d2=published").code == 0


def test_guidance_that_is_the_same_in_other_words_continues_a_set(runs, tmp_path, adm_command):
    words = ["sample", "model", "--out", tmp_path / "s", "--num", 1, *STEPS, "--guidance"]
    assert adm_command(*words, "interval:of=(autoguidance:model=unconditional,weight=2),low=1").code == 0
    assert adm_command(*words, "interval:low=1.0,of=(autoguidance:weight=2.0,model=unconditional)").code == 0
    assert adm_command(*words, "interval:of=(autoguidance:model=unconditional,weight=3),low=1").code == 2
    words[3] = tmp_path / "t"
    assert adm_command(*words, "classifier_free:weight=2,model=unconditional").code == 0
    assert adm_command(*words, "classifier-free:model=unconditional").code == 0
    assert adm_command(*words, "classifier-free:model=unconditional,weight=2.5").code == 2


def test_a_plain_number_is_recorded_as_ever_and_old_sets_continue(runs, tmp_path, adm_command):
    out = tmp_path / "s"
    guidance = ["--guidance", "classifier:classifier=guide"]
    words = ["sample", "unconditional", "--out", out, "--sampler", "ddim", *guidance, "--device", "cpu"]
    assert adm_command(*words, "--num", 1, "--steps", 5).code == 0
    request = json.loads((out / "request.json").read_text())
    assert request["steps"] == 5 and "grid" not in request and "timesteps" not in request
    request["guidance"] = ["classifier:classifier=guide,scale=1.0"]  # before there was a temperature
    (out / "request.json").write_text(json.dumps(request))
    for same in ("5", "strided:5", "ddim5"):
        assert adm_command(*words, "--num", 2, "--steps", same).code == 0
    other = adm_command(*words[:-4], "--guidance", "classifier:classifier=guide,temperature=2", "--steps", 5)
    assert other.code == 2 and "was made with guidance=" in other.problem


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ("karas:5", "no grid 'karas'; did you mean 'karras'"),
        ("five", "Write 50, sections 10,10,15, ddim25, or a grid"),
        ("nothing.json", "nothing.json: no such file. Give one that adm study fit_timesteps wrote"),
        ("0", "adm: steps 0: cannot take 0 of 1000 timesteps"),
    ],
)
def test_steps_that_are_none_are_refused_in_a_line(steps, says, runs, tmp_path, adm_command):
    for command in (["sample", "model", "--out", tmp_path / "s"], ["plan", "sample", "model", "--no-probe"]):
        result = adm_command(*command, "--steps", steps, "--device", "cpu")
        assert result.code == 2 and says in result.problem


def test_help_names_every_sampler_and_guidance_that_there_is(adm_command):
    for command in ("sample", "upsample"):
        text = adm_command(command, "--help").out
        for room in ("sampling", "guidance"):
            for name in lookup.available(room):
                claim = (lookup.find(room, name).__doc__ or "").split()[:3]
                assert re.search(rf"^  {name} +{re.escape(' '.join(claim))}", text, re.MULTILINE), name


@pytest.mark.parametrize(("command", "batch_size"), [("sample", 64), ("upsample", 16)])
def test_help_says_what_can_be_set_and_what_a_sampler_is_called(command, batch_size, adm_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = adm_command(command, "--help").out
    settings = dict(re.findall(r"^  (\w+=\w+): (.+)", text, re.MULTILINE))
    assert settings == {
        f"batch_size={batch_size}": "images at once",
        "weights=ema": "ema, model, or ema-1 and so on of a run with ema.others",
        "precision=float32": "bfloat16 is autocast around the networks (float32, bfloat16)",
    }
    words = re.sub(r"[\s│]+", " ", text)
    assert "--sampler SPEC A name, with options as name:option=value,option=value, such as ddim:eta=0.3" in words
    assert "file of adm" not in text


def test_steps_that_are_not_given_are_chosen_and_said(runs, tmp_path, adm_command):
    words = ["sample", "model", "--out", tmp_path / "s", "--num", 1, "--sampler", "ddim", "--device", "cpu"]
    result = adm_command(*words)
    assert (result.code, result.err.splitlines()[0]) == (0, "adm: using 50 steps of ddim (a default)")
    request = json.loads((tmp_path / "s" / "request.json").read_text())
    assert (request["steps"], request["label_policy"]) == (50, "every class in turn")
    given = adm_command(*words, "--steps", 50)  # the same thing said: the same set, which is complete
    assert (given.code, given.err) == (0, "")


def test_guidance_is_recorded_in_full(runs, tmp_path, adm_command):
    words = ["sample", "model", "--num", 1, *STEPS, "--guidance", "classifier:classifier=guide", "--out"]
    assert adm_command(*words, tmp_path / "s").code == 0
    request = json.loads((tmp_path / "s" / "request.json").read_text())
    assert request["guidance"] == ["classifier:classifier=guide,scale=1.0,temperature=1.0"]


def test_guidance_without_a_known_classifier_says_what_to_write(runs, tmp_path, adm_command):
    result = adm_command("sample", "model", "--out", tmp_path / "s", "--guidance", "classifier", *STEPS)
    assert (result.code, "none is known for model. Write classifier:classifier=RUN" in result.problem) == (2, True)
