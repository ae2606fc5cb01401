"""What a preset's user need not say, against the settings that its authors published."""

import dataclasses

import pytest

import adm
from adm.checkpoints.presets import PRESETS, Recommended, find_preset
from adm.runtime.errors import DamagedError, UsageError
from adm.studies.choices import choose, full_spec
from adm.studies.named_models import require_presets
from adm.studies.request import prepare_named

# Model: classifier, scale with 250 steps of DDPM, scale with 25 of DDIM, as the released commands have them.
GUIDED = {
    "openai/imagenet64": ("openai/imagenet64-classifier", 1.0, None),
    "openai/imagenet128": ("openai/imagenet128-classifier", 0.5, 1.25),
    "openai/imagenet256": ("openai/imagenet256-classifier", 1.0, 2.5),
    "openai/imagenet256-uncond": ("openai/imagenet256-classifier", 10.0, None),
    "openai/imagenet512": ("openai/imagenet512-classifier", 4.0, 9.0),
}


def chosen(name, sampler="ddpm", steps=None, guidance=("classifier",)):
    return choose(find_preset(name), name, sampler, steps, guidance)


@pytest.mark.parametrize(("name", "known"), GUIDED.items())
def test_guided_released_models_take_their_published_settings_and_say_so(name, known):
    classifier, scale, _ = known
    choice = chosen(name)
    assert (choice.guidance, choice.steps) == ((f"classifier:classifier={classifier},scale={scale}",), 250)
    assert choice.said(250) == f"using {classifier}, scale {scale}, 250 steps of ddpm (the released settings)"


@pytest.mark.parametrize(("name", "known"), [item for item in GUIDED.items() if item[1][2] is not None])
def test_with_ddim_those_of_ddim(name, known):
    classifier, _, scale = known
    for sampler in ("ddim", "ddim:eta=0.0", adm.DDIM()):
        choice = chosen(name, sampler)
        assert (choice.guidance, choice.steps) == ((f"classifier:classifier={classifier},scale={scale}",), 25)
        assert choice.said(25) == f"using {classifier}, scale {scale}, 25 steps of ddim (the released settings)"


def test_a_sampler_without_a_recommendation_says_where_scale_and_steps_come_from():
    choice = chosen("openai/imagenet64", "ddim")
    assert choice.steps is None
    assert choice.said(50) == (
        "using openai/imagenet64-classifier, scale 1.0 (released for 250 steps of ddpm), 50 steps of ddim (a default)"
    )


def test_what_is_said_explicitly_wins_and_is_not_said_again():
    name, own = "openai/imagenet64", "classifier:classifier=openai/imagenet64-classifier"
    assert chosen(name, steps=10).steps == 10
    assert chosen(name, steps=10).said(10) == "using openai/imagenet64-classifier, scale 1.0 (the released settings)"
    assert chosen(name, guidance=["classifier:scale=3"]).guidance == (f"{own},scale=3",)
    assert chosen(name, guidance=[own]).guidance == (f"{own},scale=1.0",)
    other = "classifier:classifier=runs/clf"  # a scale is recommended for the released pair alone
    assert chosen(name, guidance=[other, "clip:limit=2"]).guidance == (other, "clip:limit=2")
    assert chosen(name, steps=10, guidance=[f"{own},scale=3"]).said(10) is None
    for sampler, steps, guidance in (("ddpm", 250, ()), ("ddim", 9, ["clip"])):
        assert chosen(name, sampler, steps, guidance).said(steps) is None


def test_a_model_that_is_called_classifier_is_no_classifier_guidance():
    """Of the presets whose steps were released with guidance and without, either are taken by what guides."""
    preset = dataclasses.replace(
        find_preset("openai/imagenet64"),
        recommended=(
            Recommended(sampler="ddpm", steps=250, scale=1.0),
            Recommended(sampler="ddpm", steps=70, scale=None),
        ),
    )
    for spec, steps in (
        ("autoguidance:model=classifier", 70),
        ("classifier:scale=2", 250),
        ("interval:of=classifier", 250),
    ):
        assert choose(preset, "openai/imagenet64", "ddpm", None, [spec]).steps == steps


def test_without_guidance_only_steps_are_chosen():
    assert chosen("openai/lsun-cat", guidance=()).said(1000) == "using 1000 steps of ddpm (the released settings)"
    assert chosen("openai/imagenet64", guidance=()).said(250) == "using 250 steps of ddpm (the released settings)"
    own = choose(None, "runs/mine", "ddpm", None, ())
    assert (own.steps, own.said(250)) == (None, "using 250 steps of ddpm (a default)")


@pytest.mark.parametrize("name", ["openai/lsun-cat", "openai/iddpm-imagenet64"])
def test_a_model_without_a_known_classifier_says_what_to_write(name):
    with pytest.raises(UsageError, match=f"none is known for {name}. Write classifier:classifier=RUN,scale=2"):
        chosen(name)
    with pytest.raises(UsageError, match="none is known for runs/mine"):
        choose(None, "runs/mine", "ddpm", None, ["classifier:scale=2"])


def test_a_full_spec_spells_every_default():
    assert full_spec("guidance", "clip:limit=2") == "clip:limit=2,after=false"
    assert full_spec("guidance", "classifier:classifier=runs/a").startswith("classifier:classifier=runs/a,scale=1.0")
    assert full_spec("sampling", "ddim") == "ddim:eta=0.0"
    assert full_spec("sampling", "dpm-solver-2m") == "dpm_solver_2m:reach=1.0"
    assert full_spec("guidance", "interval:of=clip:limit=2,low=0.2") == (
        "interval:of=(clip:limit=2,after=false),low=0.2,high=inf"
    )
    twice = full_spec("guidance", "interval:of=(interval:of=(classifier:classifier=runs/a,scale=3)),high=2")
    assert twice.startswith("interval:of=(interval:of=(classifier:classifier=runs/a,scale=3")
    assert twice.endswith("low=0.0,high=inf),high=2,low=0.0")


def test_a_classifier_inside_of_another_guidance_is_chosen_as_at_the_top():
    name, full = "openai/imagenet256", "classifier:classifier=openai/imagenet256-classifier,scale=2.5"
    for spec in ("interval:of=classifier,low=0.2,high=2", "interval:of=(classifier),low=0.2,high=2"):
        choice = chosen(name, "ddim", guidance=[spec])
        assert (choice.guidance, choice.steps) == ((f"interval:of=({full}),low=0.2,high=2",), 25)
        assert choice.said(25) == (
            "using openai/imagenet256-classifier, scale 2.5, 25 steps of ddim (the released settings)"
        )
    with pytest.raises(UsageError, match="none is known for runs/mine"):
        choose(None, "runs/mine", "ddpm", None, ["interval:of=(classifier:scale=2)"])


def test_a_guidance_that_does_not_exist_is_named_at_any_depth():
    for spec in ("clasifier", "interval:of=(clasifier:scale=2)"):
        with pytest.raises(UsageError, match="there is no guidance 'clasifier'; did you mean 'classifier'"):
            choose(None, "runs/mine", "ddpm", None, [spec])


class TestCache:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ADM_CACHE", str(tmp_path))
        (tmp_path / "models").mkdir()
        return tmp_path / "models"

    def test_every_missing_file_is_named_before_any_work(self, cache):
        with pytest.raises(UsageError) as error:
            prepare_named("openai/imagenet64", None, "ddpm", ["classifier"])
        assert str(error.value) == (
            "openai/imagenet64 and openai/imagenet64-classifier are not on this machine. Fetch them: "
            "adm models get openai/imagenet64; adm models get openai/imagenet64-classifier"
        )
        with pytest.raises(UsageError, match=r"^openai/lsun-cat is not on this machine\. Fetch it: adm models get op"):
            adm.generate("openai/lsun-cat", num=1)

    def test_what_is_there_is_not_asked_for(self, cache):
        (cache / "64x64_diffusion.pt").write_bytes(b"PK\x03\x04")
        with pytest.raises(UsageError, match=r"^openai/imagenet64-classifier is not on this machine"):
            prepare_named("openai/imagenet64", None, "ddpm", ["classifier"])
        require_presets("openai/imagenet64")
        require_presets("runs/mine", ["classifier:classifier=runs/other", adm.Clip()])

    def test_what_is_missing_is_found_inside_of_other_guidances(self, cache):
        (cache / "64x64_diffusion.pt").write_bytes(b"PK\x03\x04")
        with pytest.raises(UsageError, match=r"^openai/imagenet64-classifier is not on this machine"):
            prepare_named("openai/imagenet64", None, "ddpm", ["interval:of=classifier,low=0.2"])
        nested = ["interval:of=(autoguidance:model=openai/imagenet128,weight=2)"]
        with pytest.raises(UsageError, match=r"^openai/imagenet128 is not on this machine"):
            require_presets("openai/imagenet64", nested)

    def test_a_file_that_is_not_whole_is_not_called_missing(self, cache):
        (cache / "64x64_diffusion.pt").write_bytes(b"PK\x03\x04")
        (cache / "64x64_diffusion.pt.json").write_text("{")
        with pytest.raises(DamagedError, match="adm models get openai/imagenet64"):
            require_presets("openai/imagenet64")

    def test_upsamplers_and_classifiers_need_not_be_fetched_to_be_refused(self):
        with pytest.raises(UsageError, match=r"is an upsampler: .* Sample its base, openai/imagenet64"):
            adm.generate("openai/imagenet64-to-256")
        with pytest.raises(UsageError, match=r"is a classifier\. Give a diffusion model, such as openai/imagenet64"):
            adm.generate("openai/imagenet64-classifier")

    def test_nothing_else_of_a_preset_is_needed(self, monkeypatch):
        bare = dataclasses.replace(find_preset("openai/imagenet64"), name="tiny/bare", recommended=(), classifier=None)
        monkeypatch.setitem(PRESETS, "tiny/bare", bare)
        assert chosen("tiny/bare", guidance=()).steps is None
