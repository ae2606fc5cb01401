"""A user's error is one line on stderr that names the thing, an exit code, and nothing left on the disk."""

import re
import shutil
import warnings

import pytest

import faults
from adm.runtime import _disk
from adm.training import run as training_run
from conftest import TINY, write_folder

TRAIN = "train diffusion --data digits --out {new}"
SAMPLE = "sample model --out {new} --num 2 --steps 2"
LIKELIHOOD = "likelihood model digits:test --num 2 --steps 2"

USAGE = {
    "": "which command",
    "bogus": "no command 'bogus'.* Commands: convert, data check",
    "sampel": "did you mean 'sample'",
    "train": "Choose train classifier or train diffusion",
    "train dreams": "no command 'train dreams'",
    "sample": "sample needs MODEL and --out DIR. Try adm sample --help",
    "train diffusion": "needs --data PATH and --out RUN",
    "convert a.pt": "needs DST",
    "likelihood model": "needs DATA",
    "likelihood model digits:test --num 2 --steps 0": "adm: steps 0: cannot take 0 of 1000 timesteps",
    "demo extra": "takes no 'extra'",
    f"{TRAIN} --stepz 4": "no option '--stepz'; did you mean '--steps'",
    f"{TRAIN} --steps": "--steps needs a value",
    f"{TRAIN} --steps four": "--steps 'four' is no whole number",
    f"{TRAIN} --seed 1.5": "--seed '1.5' is no whole number",
    f"{TRAIN} --steps 0": "steps is 0: must be at least 1",
    f"{TRAIN} --batch 0": "batch_size is 0",
    f"{TRAIN} --seed -1": "seed is -1",
    f"{TRAIN} --seed 18446744073709551616": "seed is 18446744073709551616",
    f"{TRAIN} --image-size 8x": "--image-size '8x': write one number, or height x width",
    f"{TRAIN} --image-size 7 --set network.channel_mult=1,2,2": "7x7: .* multiples of 4, nearest 4x4 and 8x8",
    f"{TRAIN} --set network.channel_mult=1,1,1,1,1": "8x8: 5 levels need multiples of 16, nearest 16x16",
    f"{TRAIN} --set network.model_chanels=8": "'network.model_chanels'; did you mean 'network.model_channels'",
    f"{TRAIN} --set lr=1": "did you mean 'optimizer.lr'",
    f"{TRAIN} --set optimizer.lr=fast": "optimizer.lr=fast: input should be a valid number",
    f"{TRAIN} --set optimizer.lr": "sets nothing",
    f"{TRAIN} --set loop.keep=3 loop.log_every=2": "takes no 'loop.log_every=2'. Write --set before each setting",
    f"{TRAIN} --set network=1": "network is a group of settings",
    f"{TRAIN} --set network.num_head_channels=7": "7 does not divide the 64 channels",
    f"{TRAIN} --set network.out_channels=1": "out_channels is 1: variance learned of 1-channel images needs 2",
    f"{TRAIN} --set schedule.num_timesteps=0": "num_timesteps is 0",
    f"{TRAIN} --device tpu": "no device 'tpu'. Choose auto, cpu",
    "train diffusion --data digits --out photos": "photos is not empty and holds no run",
    "train diffusion --data digits --out photos/ü/0.png": "0.png is a file",
    "train diffusion --data digits --out photos/ü/0.png/run": "0.png: .*Give another path",
    "train diffusion --data digits --out guide": "is a classifier run, not diffusion",
    "train diffusion --data digits --out unconditional --batch 5": "=4, you asked for 5. Leave the option out",
    "train diffusion --data digits --out unconditional --batch 5 --seed 7 --image-size 16 --set loss=vlb": (
        "started with network.image_size=8, you asked for 16; loop.batch_size=4, you asked for 5; "
        "loop.seed=0, you asked for 7; loss=hybrid, you asked for vlb. Leave these options out to continue, "
        "or choose another --out"
    ),
    "train diffusion --data digits --out unconditional --from model": "started with from=none, you asked for model",
    f"{TRAIN} --from nowhere": "nowhere: no such",
    f"{TRAIN} --from guide": "guide is a classifier: adm train classifier continues it",
    f"{TRAIN} --from model --image-size 16": "--image-size 16: model makes images of 8x8",
    f"{TRAIN} --from model --set network.model_channels=16": "model has network.model_channels=8, not 16. Leave out",
    f"{TRAIN} --set job=classifier": "no setting 'job'.*Choose one of time_scale, .*loss, .* or one in data, network",
    f"{TRAIN} --set loop.stepz=4": "did you mean 'loop.steps'. loop has steps, minutes, batch_size, .*keep",
    "sample model --out x.png": "--out x.png: a picture's name, .*directory .* or of an .npz. Write --out x.",
    "sample model --out new/x.JPG": "--out new/x.JPG: a picture's name.* Write --out new/x.",
    "upsample model photos --out x.webp": "--out x.webp: a picture's name",
    "sample nowhere --out {new}": "nowhere: no such run",
    "sample photos --out {new}": "photos: holds neither a run nor a checkpoint",
    "sample guide --out {new}": "is a classifier. Give a diffusion model",
    "sample model --out photos --steps 2": "photos is not empty and holds no sample set",
    "sample model --out photos/ü/0.png --steps 2": "0.png is a file",
    "sample model --out photos/ü/0.png/x.npz --steps 2": "0.png",
    f"{SAMPLE} --num 0": "0 images were asked for",
    f"{SAMPLE} --num x": "--num 'x' is no whole number",
    f"{SAMPLE} --steps 0": "adm: steps 0: cannot take 0 of 1000 timesteps: use 1 to 1000",
    f"{SAMPLE} --steps 1001": "adm: steps 1001: cannot take 1001 of 1000",
    f"{SAMPLE} --steps karras:0": "adm: steps karras:0: cannot take 0 of 1000",
    f"{SAMPLE} --steps log-snr:5000": "adm: steps log-snr:5000: cannot take 5000 of 1000",
    f"{SAMPLE} --steps ddim0": "adm: steps ddim0: cannot take 0 of 1000",
    f"{SAMPLE} --steps 2000,5": "adm: steps 2000,5: cannot take 2000 steps from a section of 500",
    f"{SAMPLE} --steps=-3": "adm: steps '-3' are no number",
    f"{SAMPLE} --steps 10.5": "adm: steps '10.5' are no number",
    f"{SAMPLE} --steps 300 --sampler ddim": "steps 300: no integer stride takes 300 of 1000.*250 or 334",
    f"{SAMPLE} --sampler dddim": "there is no sampler 'dddim'; did you mean 'ddim'. Choose one of: ddim, ddpm",
    f"{SAMPLE} --sampler ddim:eta=2": "eta 2.0: choose a number from 0",
    f"{SAMPLE} --sampler ddim:eta=x": "eta=x: input should be a valid number",
    f"{SAMPLE} --sampler ddim:etta=1": "no option 'etta'; did you mean 'eta'",
    f"{SAMPLE} --sampler ddim:eta": "'eta' is no option. Write name:option=value",
    f"{SAMPLE} --sampler nobody.heun": "sampler 'nobody.heun' is neither a module nor a name in one",
    f"{SAMPLE} --guidance clasifier": "there is no guidance 'clasifier'; did you mean 'classifier'",
    f"{SAMPLE} --guidance loss:function=nobody.dark": "function 'nobody.dark' is neither a module",
    f"{SAMPLE} --guidance classifier": "classifier needs 'classifier'",
    f"{SAMPLE} --guidance classifier:classifier=nowhere": "nowhere: no such run",
    f"{SAMPLE} --guidance classifier:classifier=model": "is a diffusion model. Give a classifier",
    f"{SAMPLE} --guidance classifier:classifier=linear-guide": "another noise schedule .*0.0778.* model .*0.492",
    "sample photo-model --out {new} --guidance classifier:classifier=guide": "8x8 with 1 channel.*8x12 with 3 channels",
    f"{SAMPLE} --guidance classifier:classifier=guide,scale=inf": "scale inf: choose a number",
    f"{SAMPLE} --guidance clip:limit=0": "limit 0.0: choose a positive",
    f"{SAMPLE} --labels 10": "label 10 is no class. Use 0 to 9",
    f"{SAMPLE} --labels -1": "label -1 is no class",
    f"{SAMPLE} --labels nine": "label 'nine' is no class. The classes are 0, 1",
    f"{SAMPLE} --labels 1,,2": "write names or numbers with commas",
    "sample photo-model --out {new} --labels a_b": "'a_b' is no class; did you mean 'a b'. The classes are a b, ü",
    "sample unconditional --out {new} --labels 3": "unconditional and nothing guides it",
    f"{SAMPLE} --seed -1": "seed -1",
    f"{SAMPLE} --seed 18446744073709551615": "seed 18446744073709551615: the seeds of 2 images",
    f"{SAMPLE} --set batch=3": "did you mean 'batch_size'",
    f"{SAMPLE} --set batch_size=0": "batch_size is 0",
    f"{SAMPLE} --set weights=best": "choose ema .*or model",
    "likelihood guide digits": "guide is a classifier",
    f"{LIKELIHOOD} --steps 0": "cannot take 0 of 1000",
    f"{LIKELIHOOD} --num 0": "at least 1 image",
    f"{LIKELIHOOD} --batch 0": "batch of at least 1",
    f"{LIKELIHOOD} --seed -1": "seed -1",
    f"{LIKELIHOOD} --out photos": "cannot write photos: Is a directory",
    "convert nowhere.pt {new} --flags {{": "--flags is not valid JSON",
    "convert nowhere.pt {new} --flags=--imagesize=64": "did you mean 'image_size'",
    "convert nowhere.pt photos --flags=--image_size=64": "photos exists",
    "demo --out {new} --set scales=1,2": "scales are .1.0, 2.0.: give 0",
    "demo --out {new} --set diffusion_steps=0": "diffusion_steps is 0",
    "demo --out photos/ü/0.png": "0.png: File exists",
    "selftest --device cuda:99": "device 'cuda:99' is not available",
}
DATA = {
    f"{TRAIN} --batch 5000": "1198 images but batch 5000: use --batch 1198 or less",
    f"{TRAIN} --set network.num_classes=3": "10 classes, but network.num_classes is 3",
    "train diffusion --data digitz --out {new}": "no such folder.*did you mean 'digits'",
    "train diffusion --data photos/ü/0.png --out {new}": "is a file, not a folder",
    "train diffusion --data photos --out {new} --batch 7": "6 images but batch 7",
    "train classifier --data flat --out {new}": "flat: no classes",
    "train diffusion --data digits --from photo-model --out {new}": "digits have 1 channel .grey., not 3",
    "train diffusion --data digits:tset --out {new}": "no split 'tset': use one of train, test, all",
    "likelihood model photos --num 2 --steps 2": "the model knows no class 'a b'. Its classes are 0, 1",
    "likelihood photo-model flat --num 2 --steps 2": "flat: no classes, but the model was trained with 2",
    "likelihood photo-model digits --num 2 --steps 2": "digits have 1 channel",
    "convert nowhere.pt {new} --flags=--image_size=64": "nowhere.pt: no such file",
    "convert nowhere.pt {new}": "nowhere.pt: no such file",
}
DAMAGED = {
    "convert photos/ü/0.png {new} --flags=--image_size=64": "0.png: is a picture; give a .pt",
    "sample photos/ü/0.png --out {new}": "0.png: is a picture; give a .pt",
    f"{TRAIN} --from photos/ü/0.png": "0.png: is a picture; give a .pt",
}
CASES = [(code, line, says) for code, table in ((2, USAGE), (3, DATA), (4, DAMAGED)) for line, says in table.items()]


def words_of(line, new):
    return [word.replace("{new}", str(new)).replace("{{", "{") for word in line.split()]


@pytest.mark.parametrize(("code", "line", "says"), CASES, ids=[line for _, line, _ in CASES])
def test_bad_input_is_one_line_with_its_exit_code_and_leaves_nothing(code, line, says, runs, tmp_path, adm_command):
    new = tmp_path / "new"
    result = adm_command(*words_of(line, new))
    assert re.search(says, result.problem), result.problem
    assert result.code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["bogus", "sample nowhere --out x", "train diffusion --data digitz --out x"])
def test_debug_shows_the_traceback_and_then_the_same_line(line, runs, adm_command):
    short = adm_command(*line.split())
    long = adm_command("--debug", *line.split())
    assert long.code == short.code
    assert "Traceback (most recent call last)" in long.err
    assert long.err.splitlines()[-1] == short.problem


@pytest.mark.parametrize("lines", [True, False])
def test_a_terminal_without_line_characters_gets_the_same_words(lines, adm_command, monkeypatch):
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", lines)
    result = adm_command("sample", "model", "--out", "x", "--num", "x")
    assert result.problem == "adm: sample: --num 'x' is no whole number. Try adm sample --help."


def test_values_that_look_like_flags_reach_convert(runs, adm_command):
    result = adm_command("convert", "nowhere.pt", "new", "--flags", "--image_size 64 --class_cond True")
    assert (result.code, "nowhere.pt: no such file" in result.problem) == (3, True)


class TestImages:
    def train(self, adm_command, folder, *words):
        return adm_command("train", "diffusion", "--data", folder, "--out", folder.parent / "new", *words)

    def test_an_empty_folder(self, tmp_path, adm_command):
        (tmp_path / "empty").mkdir()
        result = self.train(adm_command, tmp_path / "empty")
        assert (result.code, "no images in" in result.problem) == (3, True)

    def test_an_unreadable_image_is_named(self, tmp_path, adm_command):
        folder = write_folder(tmp_path / "data", (8, 8), ("a", "b"))
        whole = (folder / "b" / "1.png").read_bytes()
        (folder / "b" / "1.png").write_bytes(whole[: len(whole) // 2])
        result = self.train(adm_command, folder)
        assert (result.code, "1 unreadable image of 6" in result.problem, "b/1.png" in result.problem) == (
            3,
            True,
            True,
        )

    def test_images_of_different_sizes_ask_for_one(self, tmp_path, adm_command):
        write_folder(tmp_path / "data", (8, 8), ("a",))
        result = self.train(adm_command, write_folder(tmp_path / "data", (10, 8), ("b",)))
        assert (result.code, "say which to train at: --image-size" in result.problem) == (3, True)

    def test_a_size_that_cannot_be_halved_names_its_neighbours(self, tmp_path, adm_command):
        folder = write_folder(tmp_path / "data", (9, 12))
        result = self.train(adm_command, folder, "--set", "network.channel_mult=1,2,2")
        assert (result.code, "9x12: 3 levels need multiples of 4, nearest 8x12 and 12x12" in result.problem) == (
            2,
            True,
        )


class TestDisk:
    @pytest.mark.parametrize(
        ("operations", "fault", "says"),
        [
            (("open_file", "write", "fsync", "rename", "mkdir"), "ENOSPC", "No space left.* free"),
            pytest.param(("write", "fsync", "rename", "mkdir"), "EIO", "Check the disk", marks=pytest.mark.slow),
        ],
    )
    @pytest.mark.filterwarnings("default")
    def test_a_disk_that_fails_anywhere_in_a_run_is_one_line(
        self, operations, fault, says, tmp_path, adm_command, monkeypatch
    ):
        monkeypatch.setattr(training_run, "FEW", 8)
        words = ["train", "classifier", "--data", "digits", "--steps", "2", "--batch", "4", "--device", "cpu", *TINY]
        with faults.faults() as counter:
            assert adm_command(*words, "--out", tmp_path / "whole").code == 0
        numbers = [n for n, (name, _) in enumerate(counter.calls) if name in operations]
        for n in numbers[:: max(1, len(numbers) // 4)]:
            run = tmp_path / f"run{n}"
            with faults.faults(n, getattr(faults, fault)):
                result = adm_command(*words, "--out", run)
            if "TensorBoard gets no more of this run" in result.err:  # which ends no run
                assert (result.code, "Traceback" in result.err) == (0, False)
                continue
            assert (result.code, bool(re.search(says, result.last))) == (5, True), (n, result.err)
        assert adm_command(*words, "--out", run).code == 0

    def test_a_place_that_may_not_be_written_is_a_usage_error(self, runs, tmp_path, adm_command, monkeypatch):
        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(_disk, "mkdir", refuse)
        for line in (TRAIN, SAMPLE, f"{LIKELIHOOD} --out {{new}}/x.json", "demo --out {new}"):
            result = adm_command(*words_of(line, tmp_path / "new"))
            assert (result.code, "Permission denied. Choose a place where you may write" in result.problem) == (2, True)


class TestDamage:
    def damaged(self, runs, tmp_path, name, which=-1):
        run = shutil.copytree(runs / name, tmp_path / name)
        checkpoint = sorted((run / "checkpoints").iterdir())[which]
        file = checkpoint / "ema.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(bytes(content))
        return run, checkpoint

    @pytest.mark.filterwarnings("default")
    def test_the_newest_damaged_the_previous_one_is_used_and_named_in_a_note(self, runs, tmp_path, adm_command):
        run, checkpoint = self.damaged(runs, tmp_path, "model")
        result = adm_command("sample", run, "--out", tmp_path / "s", "--num", "1", "--steps", "2", "--device", "cpu")
        assert result.code == 0
        assert result.err.startswith("adm: note: ") and checkpoint.name in result.err and "Traceback" not in result.err
        assert '"model": "step-00000002"' in (tmp_path / "s" / "request.json").read_text()

    def test_nothing_intact_is_refused_naming_the_file(self, runs, tmp_path, adm_command):
        run, checkpoint = self.damaged(runs, tmp_path, "guide")
        for words in (["sample", run, "--out", tmp_path / "s"], ["likelihood", checkpoint, "digits"]):
            result = adm_command(*words)
            assert (result.code, "ema.safetensors" in result.problem) == (4, True)
        assert not (tmp_path / "s").exists()

    def test_the_undamaged_copy_works(self, runs, tmp_path, adm_command):
        run = shutil.copytree(runs / "model", tmp_path / "model")
        result = adm_command("sample", run, "--out", tmp_path / "s", "--num", "1", "--steps", "2", "--device", "cpu")
        assert (result.code, result.err) == (0, "")


class TestUnexpected:
    def explained(self, adm_command, monkeypatch, error):
        def fail(*_):
            raise error

        monkeypatch.setattr("adm.runtime.device.pick_device", fail)
        return adm_command("selftest")

    def test_a_fault_of_ours_says_so_and_where(self, adm_command, monkeypatch):
        result = self.explained(adm_command, monkeypatch, KeyError("x"))
        assert result.code == 1
        assert "unexpected KeyError in test_errors.py" in result.problem and "--debug" in result.problem

    @pytest.mark.parametrize(
        ("error", "code", "says"),
        [
            (MemoryError(), 5, "out of memory"),
            (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 5, "Use a smaller batch"),
            (OSError(28, "No space left on device"), 5, "No space left"),
            (OSError(24, "Too many open files", "x"), 5, "ulimit"),
            (PermissionError(13, "Permission denied", "x"), 2, "cannot use x: Permission denied"),
            (KeyboardInterrupt(), 75, "interrupted; run the same command"),
            (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 5, "out of memory"),
            (BrokenPipeError(), 0, ""),
        ],
    )
    def test_what_the_machine_refuses_is_told_apart(self, error, code, says, adm_command, monkeypatch):
        monkeypatch.setattr("os.dup2", lambda *_: 0)
        monkeypatch.setattr("sys.stdout.fileno", lambda: 1, raising=False)
        result = self.explained(adm_command, monkeypatch, error)
        assert result.code == code and says in (result.problem if code else result.err)


@pytest.mark.filterwarnings("default")
def test_what_libraries_warn_of_is_not_shown_to_users_without_debug(adm_command, monkeypatch):
    def warn(*_):
        warnings.warn("library talk", UserWarning, stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr("adm.runtime.device.pick_device", warn)
    before = warnings.showwarning
    assert "library talk" not in adm_command("selftest").err
    with pytest.warns(UserWarning, match="library talk"):
        adm_command("selftest", "--debug")
    assert warnings.showwarning is before
