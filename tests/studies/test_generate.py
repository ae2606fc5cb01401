"""From a model and a few words to images."""

import numpy as np
import pytest
import torch

import adm
from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.runtime.errors import DamagedError, UsageError
from adm.sampling import timesteps_for
from adm.studies._cost import models_in
from adm.studies.generate import batches, resolve_labels
from adm.studies.request import Request, prepare, prepare_named

TRUNK = {
    "in_channels": 2,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "num_head_channels": 8,
}
NAMES = ("cat", "7", "dog")


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def diffusion(num_classes=3, size=(8, 12)):
    network = UNet(UNetConfig(image_size=size, out_channels=4, num_classes=num_classes, **TRUNK))
    model = randomised(adm.DiffusionModel(network, adm.cosine(1000)))
    model.class_names = NAMES if num_classes == 3 else ()
    return model


def classifier(num_classes=3, size=(8, 12)):
    network = EncoderClassifier(ClassifierConfig(image_size=size, num_classes=num_classes, **TRUNK))
    model = randomised(adm.NoisyClassifier(network, adm.cosine(1000)))
    model.class_names = NAMES if num_classes == 3 else ()
    return model


@pytest.fixture(scope="module")
def model():
    return diffusion()


@pytest.fixture(scope="module")
def plain():
    return diffusion(None)


def close(a, b):
    """Networks round differently in other batch sizes: a grey level at most."""
    assert a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


def test_images_are_uint8_nhwc_of_the_models_size_and_channels(model):
    images = adm.generate(model, ["cat", 2], steps=2)
    assert (images.shape, images.dtype) == ((2, 8, 12, 2), np.uint8)


def test_it_is_the_one_loop_and_nothing_else(model):
    labels = [0, 2, 1]
    images = adm.generate(model, labels, steps=5, sampler="ddim:eta=0.5", seed=11)
    chain = adm.Chain(model.schedule, adm.strided(1000, 5))
    denoiser, noise = adm.guide(model, adm.Clip()), adm.SeededNoise([11, 12, 13])
    x = adm.sample(denoiser, chain, adm.DDIM(eta=0.5), noise, (3, 2, 8, 12), adm.Condition(label=labels))
    np.testing.assert_array_equal(images, ((x + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_image_k_depends_on_seed_plus_k_and_its_label_alone(model, sampler):
    labels = [0, 1, 2, 0, 1, 2, 0]
    everything = adm.generate(model, labels, steps=4, sampler=sampler, seed=5)
    close(adm.generate(model, labels[3:4], steps=4, sampler=sampler, seed=8), everything[3:4])
    close(adm.generate(model, labels[:2], steps=4, sampler=sampler, seed=5), everything[:2])
    for batch_size in (1, 3, 8):
        close(adm.generate(model, labels, steps=4, sampler=sampler, seed=5, batch_size=batch_size), everything)
    assert (everything[0] != everything[3]).any()


def test_how_many_are_asked_for_changes_no_byte_of_full_blocks(model):
    some, more = (adm.generate(model, [0, 1], steps=2, num=n, batch_size=4) for n in (5, 11))
    np.testing.assert_array_equal(some, more[:5])


def test_labels_are_names_or_numbers_and_repeat_in_turn(model):
    request = prepare(model, 2, "ddim")
    assert resolve_labels(request, ["dog", 1, "0"], None) == [2, 1, 0]
    assert resolve_labels(request, ["dog", "cat"], 5) == [2, 0, 2, 0, 2]
    assert resolve_labels(request, [0, 1, 2], 2) == [0, 1]
    assert resolve_labels(request, None, 4) == [0, 1, 2, 0]
    assert len(resolve_labels(request, None, None)) == 64
    close(adm.generate(model, ["dog"], steps=2, num=3), adm.generate(model, [2, 2, 2], steps=2))


def test_labels_matter_to_a_conditional_model_and_are_refused_by_an_unconditional_one(model, plain):
    a, b = (adm.generate(model, [label], steps=4) for label in (0, 1))
    assert (a != b).any()
    with pytest.raises(UsageError, match=r"unconditional and nothing guides it. Add --guidance"):
        adm.generate(plain, [0], steps=2)
    assert adm.generate(plain, num=3, steps=2).shape == (3, 8, 12, 2)


def test_a_guide_gives_an_unconditional_model_classes_and_their_names(plain):
    guide = classifier()
    request = prepare(plain, 4, "ddpm", [adm.ClassifierGuidance(guide, 5.0)])
    assert (request.classes, request.num_classes) == (NAMES, 3)
    pulled, other = (
        adm.generate(plain, [name], steps=4, sampler="ddpm", guidance=[adm.ClassifierGuidance(guide, 1e6)])
        for name in ("dog", "cat")
    )
    assert (pulled != other).any()


def test_x_0_is_clipped_unless_a_clip_says_otherwise(plain):
    def bound(*guidance):
        seen = []
        request = prepare(plain, 3, "ddim", guidance)
        adm.sample(
            request.denoiser, request.chain, request.sampler, adm.SeededNoise([0]), (1, 2, 8, 12),
            on_step=lambda event: seen.append(float(event.prediction.x0.abs().max())),
        )  # fmt: skip
        return max(seen)

    assert bound() == 1
    assert bound("clip:limit=0.25") == 0.25
    assert bound("clip:limit=1000") > 1
    assert bound("clip:after=true") == 1
    nowhere = "high=1e-9"
    assert bound(f"interval:of=(clip),{nowhere}") == bound(f"interval:of=(dynamic_threshold),{nowhere}") == 1
    assert bound(f"interval:of=(clip),{nowhere}", "clip:limit=0.25") == 0.25


def test_models_that_do_not_go_together_are_refused(model, plain):
    with pytest.raises(UsageError, match="know 3 and 4 classes"):
        prepare(model, 2, "ddim", [adm.ClassifierGuidance(classifier(4))])
    with pytest.raises(UsageError, match="16x8 with 2 channels, the model makes 8x12 with 2 channels"):
        prepare(model, 2, "ddim", [adm.ClassifierGuidance(classifier(size=(16, 8)))])
    with pytest.raises(ValueError, match=r"a DiffusionModel is no classifier: give an adm\.NoisyClassifier"):
        adm.ClassifierGuidance(plain)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "steps 0: cannot take 0 of 1000"),
        ({"steps": "karras:5000"}, "steps karras:5000: cannot take 5000 of 1000"),
        ({"steps": [5, 5]}, r"steps \[5, 5\]: a chain takes each timestep once"),
        ({"steps": 300, "sampler": "ddim"}, "250 or 334"),
        ({"sampler": "eular"}, "there is no sampler 'eular'; did you mean 'euler'"),
        ({"guidance": ["clip:limits=1"]}, "did you mean 'limit'"),
        ({"num": 0}, "at least 1"),
        ({"seed": -1}, "seed -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"labels": ["cow"]}, "'cow' is no class"),
    ],
)
def test_bad_requests_are_one_line(model, options, says):
    with pytest.raises(UsageError, match=says) as error:
        adm.generate(model, **({"steps": 2} | options))
    assert "\n" not in str(error.value)


def test_paths_are_loaded_and_wrong_ones_refused(runs, tmp_path):
    images = adm.generate("unconditional", num=2, steps=2)
    np.testing.assert_array_equal(images, adm.generate(adm.load("unconditional"), num=2, steps=2))
    checkpoint = runs / "unconditional" / "checkpoints" / "step-00000002"
    np.testing.assert_array_equal(images, adm.generate(checkpoint, num=2, steps=2))
    guided = adm.generate("unconditional", [3], steps=2, guidance=["classifier:classifier=guide,scale=2"])
    assert guided.shape == (1, 8, 8, 1)
    with pytest.raises(UsageError, match="guide is a classifier"):
        adm.generate("guide", steps=2)
    with pytest.raises(UsageError, match="no such run"):
        adm.generate(tmp_path / "nothing", steps=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "MANIFEST.json").write_text("{}")
    with pytest.raises(DamagedError):
        adm.generate(tmp_path / "empty", steps=2)


def test_blocks_start_at_multiples_of_the_batch_and_unwanted_ones_are_not_made(model):
    request: Request = prepare(model, 2, "ddim")
    steps: list[tuple[int, int]] = []
    made = list(batches(request, [0] * 7, 3, 3, {0, 6}.__contains__, lambda index, step: steps.append((index, step))))
    assert [(batch.index, len(batch.images)) for batch in made] == [(0, 3), (6, 1)]
    assert steps == [(0, 0), (0, 1), (6, 0), (6, 1)]


def test_global_random_states_are_left_alone(model):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    adm.generate(model, [0], steps=2, sampler="ddpm")
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


class FlippedGuidance:
    """A third party's guidance: holds a classifier under a name of its own and pushes away from the label."""

    stage = "gradient"

    def __init__(self, critic, scale=1.0):
        self.critic, self.scale = critic, scale

    def __call__(self, denoiser):
        return adm.ClassifierGuidance(self.critic, -self.scale)(denoiser)


def test_the_classes_of_a_third_partys_guide_are_known(plain):
    request = prepare(plain, 4, "ddim", [FlippedGuidance(classifier())])
    assert (request.classes, request.num_classes) == (NAMES, 3)
    toward = adm.generate(plain, ["dog", "cat"], steps=4, guidance=[adm.ClassifierGuidance(classifier(), 4000.0)])
    away = adm.generate(plain, ["dog", "cat"], steps=4, guidance=[FlippedGuidance(classifier(), 4000.0)])
    assert (toward != away).any()


def test_labels_reach_a_guidance_of_unknown_classes_as_numbers(plain):
    seen = []

    class Watcher:
        stage = "mix"

        def __call__(self, denoiser):
            def predict(x_t, t, cond=adm.Condition()):
                seen.append(cond.label.tolist())
                return denoiser(x_t, t, cond)

            predict.schedule, predict.device = denoiser.schedule, denoiser.device
            return predict

    adm.generate(plain, np.array([5, 70]), steps=4, guidance=[Watcher()])
    assert seen == [[5, 70]] * 4


def test_classes_that_were_never_trained_are_no_labels():
    roomy = diffusion(num_classes=5)
    roomy.class_names = ("a", "b")
    request = prepare(roomy, 4, "ddim")
    assert resolve_labels(request, None, 4) == [0, 1, 0, 1]
    with pytest.raises(UsageError, match=r"label 4 is no class\. Use 0 to 1"):
        resolve_labels(request, [4], None)


@pytest.mark.parametrize("num", [0, -3])
def test_at_least_one_image_must_be_asked_for(model, plain, num):
    for which in (model, plain):
        with pytest.raises(UsageError, match="Ask for at least 1"):
            adm.generate(which, num=num)


def test_a_thresholder_of_another_name_takes_the_place_of_the_clip(plain):
    class Tighter(adm.Clip):
        pass

    bound = adm.generate(plain, num=2, steps=4, guidance=[Tighter(limit=0.5)])
    assert bound.max() <= 192 and bound.min() >= 62


def test_steps_that_nobody_says_are_250_of_ddpm_and_50_of_others(model):
    assert [len(prepare(model, None, name).chain) for name in ("ddpm", "ddim", "ddim:eta=1")] == [250, 50, 50]
    short = diffusion()
    short.schedule = adm.cosine(30)
    assert [len(prepare(short, None, name).chain) for name in ("ddpm", "ddim")] == [30, 30]
    odd = diffusion()
    odd.schedule = adm.cosine(120)  # strides of 2 and 3 take 60 and 40 of it, and none takes 50
    assert len(prepare(odd, None, "ddim").chain) == 60


def test_an_upsampler_is_refused_before_anything_is_drawn():
    network = UNet(UNetConfig(image_size=(8, 12), out_channels=4, low_res_channels=2, **TRUNK))
    upsampler = randomised(adm.DiffusionModel(network, adm.cosine(1000)))
    with pytest.raises(UsageError, match=r"is an upsampler: .* Give a base model.*adm.Condition\(low_res=...\)"):
        adm.generate(upsampler, num=1, steps=2)
    low_res = torch.zeros(1, 2, 4, 6)  # the remedy that the message names
    chain, cond = adm.Chain(upsampler.schedule, adm.spaced(1000, 2)), adm.Condition(low_res=low_res)
    assert adm.sample(upsampler, chain, adm.DDPM(), adm.SeededNoise([0]), (1, 2, 8, 12), cond).shape == (1, 2, 8, 12)


def test_one_word_of_labels_is_a_word_and_not_its_letters(model):
    close(adm.generate(model, "dog,cat", steps=2), adm.generate(model, ["dog", "cat"], steps=2))


def test_the_precision_of_a_model_is_left_alone(model):
    model.precision = torch.bfloat16
    adm.generate(model, num=1, steps=2)
    assert model.precision is torch.bfloat16
    model.precision = None


@pytest.mark.parametrize("steps", ["karras:4", "LOG_SNR: 4", "ddim4", "2,2", [0, 3.5, 700.25], np.array([5, 1])])
def test_steps_may_be_a_grid_or_timesteps(model, steps):
    chain = adm.Chain(model.schedule, timesteps_for(adm.DDIM(), model.schedule, steps))
    x = adm.sample(
        adm.guide(model, adm.Clip()), chain, adm.DDIM(), adm.SeededNoise([0]), (1, 2, 8, 12), adm.Condition(label=[1])
    )
    images = adm.generate(model, [1], steps=steps)
    np.testing.assert_array_equal(images, ((x + 1) * 127.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())


def test_a_grid_is_named_unless_it_is_the_samplers_own(model):
    def name(steps, sampler="ddim"):
        return prepare(model, steps, sampler).grid

    assert [name(steps) for steps in (10, "10", "strided:10", "ddim10", adm.strided(1000, 10))] == [None] * 5
    assert name("Karras: 5") == "karras:5" and name("even:10", "ddpm") is None and name("even:10") == "even:10"
    assert name([0, 3.5, 700]) == "timesteps" and name("10,10") == "10,10"


@pytest.mark.parametrize("steps", ["karas:4", [5, 5], [0, 1000], [], 10.5, "none.json"])
def test_steps_that_are_none_are_one_line(model, steps):
    with pytest.raises(UsageError) as error:
        adm.generate(model, [1], steps=steps)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_a_guidance_inside_of_a_guidance_is_built_with_its_own_models(runs):
    inner = "classifier:classifier=guide,scale=3"
    request = prepare_named("unconditional", 4, "ddim", [f"interval:of=({inner}),low=0.2,high=2"])
    (guide,) = (model for model in request.models if isinstance(model, adm.NoisyClassifier))
    assert [path.parts[-3] for path in request.guides] == ["guide"] and request.num_classes == 10
    assert request.guidance[0].startswith(f"interval:of=({inner}")
    text = adm.generate("unconditional", [3, 4], steps=4, guidance=[f"interval:of=({inner}),low=0.2,high=2"])
    objects = [adm.Interval(adm.ClassifierGuidance(guide, 3.0), low=0.2, high=2.0)]
    np.testing.assert_array_equal(text, adm.generate("unconditional", [3, 4], steps=4, guidance=objects))
    twice = f"interval:of=(interval:of=({inner}),low=0.2),high=2"
    np.testing.assert_array_equal(text, adm.generate("unconditional", [3, 4], steps=4, guidance=[twice]))


def test_models_inside_of_guidances_are_checked_and_cast_as_those_outside(model, runs):
    with pytest.raises(UsageError, match="know 3 and 4 classes"):
        prepare(model, 2, "ddim", [adm.Interval(adm.ClassifierGuidance(classifier(4)), low=0.1)])
    guide = classifier()
    prepare(model, 2, "ddim", [adm.Interval(adm.ClassifierGuidance(guide), low=0.1)], precision="bfloat16")
    assert guide.precision is torch.bfloat16 and model.precision is torch.bfloat16
    model.precision = None
    guide.schedule = None
    with pytest.warns(UserWarning, match="does not say which noise schedule"):
        prepare(model, 2, "ddim", [adm.Interval(adm.ClassifierGuidance(guide), low=0.1)])


def test_the_perturbed_copy_of_a_model_has_its_precision_and_is_counted(model):
    request = prepare(model, 5, "ddim", ["perturbed_attention:scale=1"], precision="bfloat16")
    assert [found.precision for found in models_in(request.denoiser)] == [torch.bfloat16] * 2
    (batch,) = batches(request, [0, 1], batch_size=2)
    assert batch.cost.network == 10
    model.precision = None


@pytest.fixture
def mylab(tmp_path, monkeypatch):
    (tmp_path / "thirdparty_losses.py").write_text(
        "number = 3\n"
        "def dark(x0):\n    return x0.square().sum((1, 2, 3))\n"
        "def bright(x0):\n    return -x0.sum((1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_function_is_named_by_its_module(plain, mylab):
    import thirdparty_losses

    text = adm.generate(plain, num=2, steps=4, guidance=["loss:function=thirdparty_losses.dark,scale=0.5"])
    given = adm.generate(plain, num=2, steps=4, guidance=[adm.LossGuidance(thirdparty_losses.dark, 0.5)])
    np.testing.assert_array_equal(text, given)
    other = adm.generate(plain, num=2, steps=4, guidance=["loss:function=thirdparty_losses.bright,scale=0.5"])
    assert (other != given).any()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("loss:function=dark", "names no function. Write its module too"),
        ("loss:function=thirdparty_losses.drak", "neither a module nor a name in one"),
        ("loss:function=thirdparty_losses.number", "is a int. Give the name of a function"),
        ("interval:of=(loss:function=dark),low=1", "names no function"),
        ("interval:of=(clip:limits=1),low=1", "did you mean 'limit'"),
        ("interval:of=(classifier:classifier=nothing,scale=1)", "no such run"),
        ("interval:low=1", "interval needs 'of'"),
    ],
)
def test_what_options_cannot_mean_is_one_line(plain, mylab, spec, says):
    with pytest.raises(UsageError, match=says) as error:
        adm.generate(plain, num=1, steps=2, guidance=[spec])
    assert "\n" not in str(error.value)


def test_an_ordinary_classifier_is_a_noisy_one_by_its_path_or_somebodys_function(runs, tmp_path, monkeypatch):
    (tmp_path / "thirdparty_clean.py").write_text("def logits(images):\n    return images.flatten(1)[:, :10]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for what in ("guide", "thirdparty_clean.logits"):
        spec = f"clean_classifier:classifier={what},scale=50"
        guided = adm.generate("unconditional", [1, 2], steps=4, guidance=[spec])
        assert (guided != adm.generate("unconditional", num=2, steps=4)).any()


def test_a_null_label_that_was_never_trained_is_noted(runs):
    for spec in ("classifier_free:weight=2", "interval:of=(apg:weight=2),low=0.2"):
        with pytest.warns(UserWarning, match="trained with label_dropout=0 .* Train with --set label_dropout=0.1"):
            prepare_named("model", 2, "ddim", [spec])
    for spec in ("classifier_free:weight=1", "classifier_free:model=unconditional", "autoguidance:model=model"):
        prepare_named("model", 2, "ddim", [spec])  # warnings are errors here


def test_a_guidance_needs_no_list_around_it(plain, runs):
    guidance = adm.ClassifierGuidance(classifier(), 1e4)
    listed, alone = (adm.generate(plain, ["dog"], steps=3, guidance=g) for g in ([guidance], guidance))
    np.testing.assert_array_equal(listed, alone)
    assert (alone != adm.generate(plain, num=1, steps=3)).any()
    spec = "classifier:classifier=guide,scale=2e4"
    listed, alone = (adm.generate("unconditional", [3], steps=2, guidance=g) for g in ((spec,), spec))
    np.testing.assert_array_equal(listed, alone)
    assert (alone != adm.generate("unconditional", num=1, steps=2)).any()
    assert prepare(plain, 2, "ddim", adm.Clip(0.5)).guided_by == ("Clip",)
    assert prepare_named("unconditional", 2, "ddim", spec).guidance[0].startswith(spec)


class Needy:
    def __init__(self, model, *more):
        pass


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sampler": adm.UniPC}, r"sampler UniPC is a class\. Write adm\.UniPC\(\)\."),
        ({"sampler": Needy}, r"sampler Needy is a class\. Write Needy\(\.\.\.\)\."),
        ({"sampler": 5}, r"sampler '5' is no sampler\. Give a spec such as ddim:eta=0\.3"),
        ({"sampler": None}, "sampler 'None' is no sampler"),
        ({"guidance": adm.Clip}, r"guidance Clip is a class\. Write adm\.Clip\(\)\."),
        ({"guidance": ["clip", adm.LossGuidance]}, r"LossGuidance is a class\. Write adm\.LossGuidance\(\.\.\.\)\."),
        ({"guidance": 5}, "guidance '5' is no guidance. Give a spec such as classifier_free:weight=2"),
        ({"guidance": None}, "guidance 'None' is no guidance"),
        ({"guidance": [("clip", 2)]}, "is no guidance. Give a spec"),
        ({"guidance": "classifier-free:weight=2,wait=3"}, "no option 'wait'"),
    ],
)
def test_what_is_no_sampler_or_guidance_is_said_in_a_line(model, runs, options, says):
    for source in (model, "model"):
        with pytest.raises(UsageError, match=says) as error:
            adm.generate(source, **({"steps": 2} | options))
        assert "\n" not in str(error.value)
