"""What every extractor owes, whichever files are there, and what each of them says of its own."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adm.checkpoints import store
from adm.checkpoints.load import save_model
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.diffusion.schedule import linear
from adm.metrics import pixel_features
from adm.metrics._extractor import Extractor, exact_float32
from adm.metrics.extractors.classifier import ClassifierExtractor
from adm.metrics.extractors.inception import InceptionExtractor
from adm.metrics.extractors.pixels import PixelExtractor
from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.runtime import files, lookup
from adm.runtime.errors import AdmError, DamagedError, DataError, UsageError
from golden_dinov2 import dinov2_weights
from golden_inception import SIZES, inception_weights, recorded_images, recorded_values

FILES = lookup.available("metrics.extractors")
SIZE = 16


def noise(n: int, height: int = SIZE, width: int = SIZE, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (n, height, width, channels)).astype(np.uint8))


def classifier(pool: str = "attention", channels: int = 3) -> NoisyClassifier:
    config = ClassifierConfig(
        image_size=SIZE,
        in_channels=channels,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_head_channels=16,
        num_classes=5,
        pool=pool,
    )
    torch.manual_seed(0)
    network = EncoderClassifier(config)
    with torch.no_grad():
        for parameter in network.parameters():  # some start at zero, and then nothing is seen
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return NoisyClassifier(network.eval(), linear(100))


@pytest.fixture(scope="module", autouse=True)
def _generators() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(inception_weights(), path)
    return path


@pytest.fixture(scope="module")
def inception(inception_file) -> InceptionExtractor:
    extractor = InceptionExtractor(inception_file, allow_other_weights=True)
    extractor.batch_size = 2  # less to fill up
    return extractor


@pytest.fixture(scope="module")
def extractors(inception, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Extractor]:
    directory = tmp_path_factory.mktemp("extractors")
    torch.save(dinov2_weights("mlp"), directory / "dinov2.pth")
    save_model(classifier(), directory / "clf")
    return {
        "inception": inception,
        "pixels": PixelExtractor(),
        "dinov2": lookup.build("metrics.extractors", f"dinov2:weights={directory / 'dinov2.pth'}"),
        "classifier": lookup.build("metrics.extractors", f"classifier:path={directory / 'clf'}"),
    }


# ---- the contract --------------------------------------------------------------------------------


def test_extractors_are_found_by_name_and_are_no_metrics(extractors):
    assert sorted(extractors) == FILES
    assert all(type(extractors[name]) is lookup.find("metrics.extractors", name) for name in FILES)
    assert "extractors" not in lookup.available("metrics")


@pytest.mark.parametrize("name", FILES)
def test_a_row_of_float32_an_image_and_tap(extractors, name):
    extractor = extractors[name]
    found, none = extractor(noise(3)), extractor(noise(0))
    assert tuple(found) == tuple(none) == extractor.taps and extractor.taps[0] in ("pool", "features")
    for tap, values in found.items():
        assert values.dtype == none[tap].dtype == torch.float32 and not values.requires_grad
        assert values.ndim == 2 and len(values) == 3 and none[tap].shape == (0, values.shape[1])
        assert torch.isfinite(values).all() and not torch.equal(values[0], values[1])
    values.add_(1)  # tensors like any others
    assert re.fullmatch(r"[a-z0-9-]+(@[0-9a-f]{8})?", extractor.name)
    assert json.loads(json.dumps(extractor.conditions)) == extractor.conditions and extractor.conditions


@pytest.mark.parametrize("name", FILES)
def test_an_image_has_the_same_features_to_the_bit_in_whatever_company(extractors, name):
    images = noise(5)
    together = extractors[name](images)
    for parts in ([1, 4], [3, 2]):
        apart = [extractors[name](part) for part in images.split(parts)]
        for tap, values in together.items():
            assert torch.equal(torch.cat([part[tap] for part in apart]), values), (tap, parts)


@pytest.mark.parametrize("name", FILES)
def test_an_image_has_the_same_features_to_the_bit_with_any_number_of_threads(extractors, name):
    images, before = noise(5), torch.get_num_threads()
    found = {}
    try:
        for num in (1, 2, 3):
            torch.set_num_threads(num)
            found[num] = extractors[name](images)
            assert torch.get_num_threads() == num
    finally:
        torch.set_num_threads(before)
    for num in (2, 3):
        for tap, values in found[1].items():
            assert torch.equal(found[num][tap], values), (tap, num)


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_uint8_image_batch_is_refused(extractors, name):
    for images in (noise(2).float(), noise(2)[0], noise(2).permute(0, 3, 1, 2), noise(2)[..., :2], noise(2)[:, :0]):
        with pytest.raises(UsageError, match=r"uint8 \(n, H, W, C\)") as error:
            extractors[name](images)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in FILES if name != "pixels"])
def test_a_grey_image_is_three_equal_channels(extractors, name):
    grey = noise(2, channels=1)
    for tap, values in extractors[name](grey).items():
        assert torch.equal(values, extractors[name](grey.repeat(1, 1, 1, 3))[tap])


# ---- Inception -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_the_extractor_gives_the_recorded_features(inception, size):
    found, truth = inception(recorded_images(size)), recorded_values(size)
    for tap, name in (("pool", "pool"), ("spatial", "spatial"), ("logits", "logits_unbiased")):
        assert (found[tap] - truth[name]).abs().max() < 1e-4 * truth[name].abs().max(), tap


def test_bfloat16_stays_within_the_difference_that_its_conditions_state(inception_file):
    extractor = InceptionExtractor(inception_file, True, precision="bfloat16")
    extractor.batch_size = 2
    truth = recorded_values("64x64")
    found = extractor(recorded_images("64x64"))
    stated = extractor.conditions["relative_difference_from_float32"]
    for tap, name in (("pool", "pool"), ("spatial", "spatial"), ("logits", "logits_unbiased")):
        difference = float((found[tap] - truth[name]).abs().max() / truth[name].abs().max())
        assert 1e-4 < difference < 1.5 * stated[tap] and found[tap].dtype == torch.float32
    measured = extractor.difference_from_exact(recorded_images("64x64"))
    assert all(1e-4 < measured[tap] < 1.5 * stated[tap] for tap in measured) and not extractor.is_exact
    with pytest.raises(UsageError, match="float32 or bfloat16"):
        InceptionExtractor(inception_file, True, precision="float16")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch.compile's own modules
def test_compiled_it_gives_the_recorded_features(inception_file):
    extractor = InceptionExtractor(inception_file, True, compile=True)
    for size in SIZES[:2]:  # of another size, compiled once
        pool = extractor(recorded_images(size))["pool"]
        assert (pool - recorded_values(size)["pool"]).abs().max() < 1e-4 * recorded_values(size)["pool"].abs().max()


def test_a_compiler_that_fails_is_one_line(inception_file, monkeypatch):
    def compile(network: torch.nn.Module, dynamic: bool) -> Callable[[Tensor], object]:
        def failing(x: Tensor) -> object:
            raise RuntimeError("no g++\nas far as the eye can see")

        return failing

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(UsageError, match=r"torch\.compile fails here .*no g\+\+.* Leave it out") as error:
        InceptionExtractor(inception_file, True, compile=True)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_that_may_use_tf32_the_features_are_still_float32s(inception_file, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    found = InceptionExtractor(inception_file, True, device="cuda")(recorded_images("64x64"))
    for tap, name in (("pool", "pool"), ("spatial", "spatial"), ("logits", "logits_unbiased")):
        truth = recorded_values("64x64")[name]
        assert (found[tap].cpu() - truth).abs().max() < 1e-4 * truth.abs().max()
    assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resets the peak of resident memory")
def test_thirty_two_images_at_a_time_take_less_than_a_gigabyte(inception):
    def kilobytes(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1])

    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    inception.batch_size = 32
    try:
        inception(noise(64, 256, 256))
    finally:
        inception.batch_size = 2
    assert kilobytes("VmHWM") - before < 1_000_000


def test_the_name_says_that_the_weights_are_other_ones(inception, inception_file):
    sha256 = files.sha256_file(inception_file)
    assert inception.name == f"inception-2015-12-05@{sha256[:8]}"
    assert inception.conditions["weights_sha256"] == sha256


def test_the_published_weights_have_the_bare_name(inception_file, monkeypatch):
    monkeypatch.setattr(files, "sha256_file", lambda path: store.INCEPTION.sha256)
    assert InceptionExtractor(inception_file).name == "inception-2015-12-05"


def test_weights_of_another_hash_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"no weights at all")
    with pytest.raises(DamagedError, match="--allow-other-weights") as error:
        InceptionExtractor(path)
    assert store.INCEPTION.sha256 in str(error.value) and files.sha256_file(path) in str(error.value)
    with pytest.raises(DamagedError) as error:
        InceptionExtractor(path, allow_other_weights=True)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_without_weights_both_addresses_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ADM_CACHE", str(tmp_path))
    monkeypatch.delenv("ADM_INCEPTION_WEIGHTS", raising=False)
    with pytest.raises(UsageError, match="adm models get inception") as error:
        InceptionExtractor()
    message = str(error.value)
    assert all(url in message for url in store.INCEPTION.urls) and len(store.INCEPTION.urls) == 2
    assert "--weights" in message and "\n" not in message and len(message) < 600


def test_weights_come_from_the_argument_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    cached = tmp_path / "models" / store.INCEPTION.file
    cached.parent.mkdir()
    with cached.open("wb") as stream:
        stream.truncate(store.INCEPTION.num_bytes)
    for name in ("argument", "variable"):
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("ADM_CACHE", str(tmp_path))
    monkeypatch.delenv("ADM_INCEPTION_WEIGHTS", raising=False)
    assert refused(InceptionExtractor) == cached.name
    monkeypatch.setenv("ADM_INCEPTION_WEIGHTS", str(tmp_path / "variable"))
    assert refused(InceptionExtractor) == "variable"
    assert refused(lambda: InceptionExtractor(tmp_path / "argument")) == "argument"
    monkeypatch.setenv("ADM_INCEPTION_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="ADM_INCEPTION_WEIGHTS"):
        InceptionExtractor()


def refused(build: Callable[[], object]) -> str:
    """The name of the file whose hash was found to be another."""
    with pytest.raises(AdmError, match="has sha256") as error:
        build()
    return Path(str(error.value).partition(" has sha256")[0]).name


# ---- exact products ------------------------------------------------------------------------------

SETTINGS: dict[str, Callable[[], None]] = {
    "as it comes": lambda: None,
    "old: high": lambda: torch.set_float32_matmul_precision("high"),
    "old: medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old: no TF32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "new: TF32": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "new: convolutions exact": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
}


def newer_settings() -> list:
    backends = torch.backends
    return [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    ]


def flags() -> list[object]:
    found: list[object] = [setting.fp32_precision for setting in newer_settings()]
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:  # mixed with the newer ones
            found.append(None)
    return [*found, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark]


@pytest.fixture
def _settings() -> Iterator[None]:
    before = [setting.fp32_precision for setting in newer_settings()]
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for setting, value in zip(newer_settings(), before, strict=True):
        setting.fp32_precision = value


@pytest.mark.usefixtures("_settings")
@pytest.mark.parametrize("name", SETTINGS)
def test_products_are_exact_within_and_every_setting_is_as_before_afterwards(name):
    SETTINGS[name]()
    before = flags()
    with pytest.raises(KeyError), exact_float32():
        inside = flags()
        raise KeyError
    assert {*inside[:5]} <= {"none", "ieee"} and inside[-2:] == [True, False]
    assert inside[5] == "highest" and flags() == before


# ---- the others ----------------------------------------------------------------------------------


def test_pixels_are_the_pixel_features():
    images = noise(3, 5, 7)
    assert torch.equal(PixelExtractor()(images)["features"], pixel_features(images).values)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_a_classifiers_features_are_what_its_last_layer_sees_at_no_noise(tmp_path, pool):
    model = classifier(pool)
    save_model(model, tmp_path / "clf")
    extractor = ClassifierExtractor(tmp_path / "clf")
    images = noise(4)
    found = extractor(images)
    with torch.no_grad():
        x = images.permute(0, 3, 1, 2) / 127.5 - 1
        torch.testing.assert_close(found["logits"], model(x, 0), rtol=1e-4, atol=1e-5)
        last = {"attention": "proj", "adaptive": "linear"}.get(pool, "linear2")
        torch.testing.assert_close(getattr(model.network.out, last)(found["features"]), found["logits"])
        assert not torch.allclose(model(x, 5), model(x, 0), rtol=1e-3)
    assert re.fullmatch(r"classifier@[0-9a-f]{8}", extractor.name)


def test_a_classifier_of_other_weights_has_another_name(tmp_path):
    model = classifier()
    save_model(model, tmp_path / "a")
    with torch.no_grad():
        model.network.out.proj.bias.add_(1)
    save_model(model, tmp_path / "b")
    assert ClassifierExtractor(tmp_path / "a").name != ClassifierExtractor(tmp_path / "b").name


def test_images_of_another_size_are_refused_and_so_is_a_diffusion_model(tmp_path):
    save_model(classifier(channels=1), tmp_path / "clf")
    extractor = ClassifierExtractor(tmp_path / "clf")
    assert extractor(noise(2, channels=1))["logits"].shape == (2, 5)
    for images, found in ((noise(2, 8, 16, 1), "8x16 with 1"), (noise(2), "16x16 with 3")):
        with pytest.raises(UsageError, match=f"made for 16x16 images with 1 channels, these are {found}"):
            extractor(images)
    config = UNetConfig(SIZE, model_channels=32, channel_mult=(1,), num_res_blocks=1, out_channels=6)
    save_model(DiffusionModel(UNet(config), linear(100)), tmp_path / "unet")
    with pytest.raises(UsageError, match="holds a diffusion model"):
        ClassifierExtractor(tmp_path / "unet")
