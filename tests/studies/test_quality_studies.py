"""The studies at a reduced size: all is there, a stop costs nothing, and processes share the work."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny_studies
from adm.diffusion.model import DiffusionModel
from adm.diffusion.schedule import cosine
from adm.nn import UNet, UNetConfig
from adm.runtime.errors import StoppedError, UsageError
from adm.sampling import SeededNoise, sample
from adm.studies._comparison import paired
from adm.studies._cost import counted
from adm.studies._digit_models import DigitModels, Sizes, part
from adm.studies._seconds import interleaved
from adm.studies._trials import Summary
from adm.studies.experiments import _ways
from adm.studies.experiments._link_seconds import stored_seconds
from adm.studies.experiments.guidances import Guidances
from adm.studies.experiments.samplers import GRIDS, REFERENCE, RULES, Samplers, variant
from adm.studies.generate import batches
from adm.studies.request import prepare
from processes import Job
from tiny_runs import NETWORK

PROGRAM = 'import sys; sys.path.insert(0, "tests"); import runpy; runpy.run_module("tiny_studies", run_name="__main__")'
NAMES = ("samplers", "guidances", "training_choices")


def study(name: str, out: Path, size: int, *stop: str) -> list[int]:
    """Its exit statuses."""
    with Job(PROGRAM, size, name, str(out), *stop) as job:
        codes = job.codes(400)
        assert None not in codes, [(rank.out, rank.err) for rank in job.ranks]
        assert stop or codes == [0] * size, [rank.err for rank in job.ranks]
        return [code or 0 for code in codes]


def results_of(out: Path) -> dict:
    results = json.loads((out / "results.json").read_text())
    results.pop("machine")
    return results


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed study in this process, made when it is asked for."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp("studies") / name
            with pytest.MonkeyPatch.context() as patch:
                tiny_studies.reduce(name, patch.setattr)
                tiny_studies.run(name, out)
            made[name] = out
        return made[name]

    return of


# The others take half a minute between them, and two processes twice that.
ONE_HERE = ["samplers", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]


@pytest.mark.parametrize("name", ONE_HERE)
def test_everything_is_written_and_the_report_stands_alone(name, whole):
    out = whole(name)
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in html and 'src="http' not in html
    results = results_of(out)
    assert all(set(s["by_seed"]) == {"0", "1"} for s in (results.get("sets") or results["variants"]).values())
    assert list((out / "pictures").glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_find_what_one_does_and_train_nothing_twice(name, whole, tmp_path):
    study(name, tmp_path / "two", 2)
    assert results_of(tmp_path / "two") == results_of(whole(name))
    runs = [sorted(p.parent.name for p in out.rglob("config.json")) for out in (whole(name), tmp_path / "two")]
    assert runs[0] == runs[1]


@pytest.mark.slow
@pytest.mark.parametrize("moment", [2, 9])  # in a training run, and in another
def test_stopped_it_goes_on_to_the_same_end(moment, whole, tmp_path):
    with pytest.raises(StoppedError), pytest.MonkeyPatch.context() as patch:
        tiny_studies.reduce("samplers", patch.setattr)
        tiny_studies.run("samplers", tmp_path / "out", moment)
    assert not (tmp_path / "out" / "results.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        tiny_studies.reduce("samplers", patch.setattr)
        tiny_studies.run("samplers", tmp_path / "out")
    assert results_of(tmp_path / "out") == results_of(whole("samplers"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = UNet(UNetConfig(**NETWORK, out_channels=2)).eval()
    return DiffusionModel(network, cosine(1000))


@pytest.mark.parametrize("name", [*RULES, *GRIDS])
@pytest.mark.parametrize("evaluations", [5, 6])
def test_a_rule_spends_the_evaluations_it_is_given_and_no_more(name, evaluations, model):
    rule = {**RULES, **GRIDS}[name]
    request = prepare(model, rule.grid.format(links=rule.links(evaluations)), rule.spec)
    with counted(model, images=2) as cost:
        list(batches(request, [-1, -1], 0, 2))
    assert evaluations - rule.evaluations < cost.network <= evaluations
    assert cost.network == rule.spent(evaluations)


@pytest.mark.parametrize("name", RULES)
def test_the_rules_without_noise_make_of_one_first_noise_one_image(name, model):
    rule, first = RULES[name], torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    request = prepare(model, rule.grid.format(links=rule.links(5)), rule.spec)
    chain, noises = request.chain, (SeededNoise([1]), SeededNoise([2]))
    one, other = [sample(request.denoiser, chain, request.sampler, n, first.shape, x=first) for n in noises]
    assert torch.equal(one, other) != rule.noise


def test_the_verdict_compares_with_the_reference_under_equal_seeds():
    """Two rules: one is as DDPM but for luck, in the other study none is."""

    def summary(name, *values):
        by_seed = {seed: {"fd": v, "label_accuracy": 0.5 + 0.01 * seed} for seed, v in enumerate(values)}
        return Summary(name, {"fd": sum(values) / len(values), "label_accuracy": 0.51}, {}, by_seed)

    def verdict(*values):
        found = {variant("classifier", name, 10): summary(name, 9.0, 9.0, 9.0) for name in RULES}
        found[variant("classifier", "unipc3", 10)] = summary("unipc3", *values)
        found[variant("classifier", REFERENCE, 250)] = summary(REFERENCE, 1.0, 2.0, 3.0)
        return Samplers(evaluations=(10,)).verdict("classifier", found)

    assert "unipc3 at 10" in verdict(1.1, 1.9, 3.0) and "as good within" in verdict(1.1, 1.9, 3.0).split(";")[1]
    assert "+1.00" in verdict(2.1, 2.9, 4.0) and "not as good" in verdict(2.1, 2.9, 4.0)
    assert "-0.50" in verdict(0.6, 1.4, 2.5) and "better, by more" in verdict(0.6, 1.4, 2.5)


class TestWhatSamplersSay:
    @staticmethod
    def said(seeds: int, **settings: object) -> tuple[str, Samplers]:
        """Of sets that are all alike, without guidance."""
        study = Samplers(seeds=seeds, **settings)
        values = {"fd": 2.0, "label_accuracy": 0.5}
        by_seed = dict.fromkeys(range(seeds), values)
        sets = [(name, num) for num in study.evaluations for name in RULES] + [(REFERENCE, study.reference)]
        found = {variant("unguided", *s): Summary(s[0], values, dict.fromkeys(values), by_seed) for s in sets}
        return study.verdict("unguided", found), study

    @pytest.mark.parametrize(
        ("evaluations", "reference", "most"), [((5, 8), 10, 8), ((5, 25, 50), 250, 25), ((5, 8, 20), 20, 8)]
    )
    def test_the_largest_number_that_was_compared(self, evaluations, reference, most):
        said, _ = self.said(3, evaluations=evaluations, reference=reference)
        assert f"the best at no more than {most} evaluations" in said
        nothing, _ = self.said(3, evaluations=evaluations[-1:], reference=min(evaluations))
        assert f"no set has {min(evaluations) - 1} evaluations or fewer" in nothing

    def test_one_seed_has_its_differences_and_no_brackets_of_nothing(self):
        said, _ = self.said(1)
        assert said.endswith("FD to all digits 2.00 against 2.00, difference +0.00.") and "standard error" not in said
        assert "±" in self.said(2)[0] and "(standard error): as good" in self.said(2)[0]

    def test_the_columns_are_said_to_hold_fewer_where_they_do(self):
        less = "one fewer is spent by heun and heun-churn"
        assert less in self.said(1, evaluations=(5, 8))[1].columns_caption()
        assert self.said(1, evaluations=(5, 15))[1].columns_caption().endswith("network evaluations.")


def test_chains_of_all_ways_take_equally_long():
    seconds = {name: 0.001 * (1 + 0.37 * k) for k, name in enumerate(_ways.WAYS)}
    for budget in (16, 48):
        allowed = budget * seconds[_ways.NONE]
        for name in _ways.WAYS:
            taken = Guidances().links(seconds, name, budget) * seconds[name]
            assert abs(taken - allowed) <= seconds[name] / 2 + 1e-12  # to half a link


def test_stored_seconds_are_those_of_this_very_setting_or_none(tmp_path):
    path, study = tmp_path / "seconds.json", Guidances()
    setting, seconds = study.setting("cpu"), dict.fromkeys(_ways.WAYS, 0.5)
    assert stored_seconds(path, setting) is None
    path.write_text(json.dumps({**setting, "seconds": seconds}))
    assert stored_seconds(path, setting) == seconds
    others = [
        replace(study, **change).setting("cpu")
        for change in ({"width": 24}, {"sampler": "heun"}, {"budgets": (8,)}, {"num": 20})
    ]
    for other in (*others, study.setting("cuda"), {**setting, "machine": {"torch": "1.0"}}, {**setting, "ways": []}):
        assert other != setting and stored_seconds(path, other) is None
    for incomplete in ({}, {"seconds": {}}, {"seconds": {**seconds, "apg": None}}, {"seconds": {**seconds, "apg": 0}}):
        path.write_text(json.dumps({**setting, **incomplete}))
        assert stored_seconds(path, setting) is None
    path.write_text("{")
    assert stored_seconds(path, setting) is None


def test_a_study_measures_again_what_was_measured_in_another_setting(tmp_path, monkeypatch):
    """And keeps what it has measured."""
    measured = []

    def interleaved(works, rounds, device):
        measured.append(list(works))
        return dict.fromkeys(works, 1.0)

    monkeypatch.setattr("adm.studies.experiments.guidances.interleaved", interleaved)
    monkeypatch.setattr(Guidances, "request", lambda *words: None)
    (tmp_path / "seconds.json").write_text(json.dumps({"ways": list(_ways.WAYS)}))
    for study, times in ((Guidances(), 1), (Guidances(), 1), (Guidances(width=24), 2)):
        study.seconds(tmp_path, DigitModels(tmp_path, Sizes(8, 4, 3, 3, 8)))
        assert len(measured) == times


def test_evaluations_that_a_rule_cannot_have_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(DigitModels, "train", lambda *words: pytest.fail("trained"))
    with pytest.raises(UsageError, match=r"^37 evaluations of ddim: .*Choose other evaluations\.$"):
        Samplers(evaluations=(10, 37)).run(tmp_path)
    with pytest.raises(UsageError, match=r"^1001 evaluations of ddpm: "):
        Samplers(reference=1001).run(tmp_path)


@pytest.mark.parametrize("more", [{"seeds": 4}, {"evaluations": (5, 8)}, {"reference": 100}])
def test_more_of_it_keeps_what_is_measured(more):
    keys = [
        {trial.key for trial in Samplers(**choice).trials()} for choice in ({"evaluations": (5,)}, more, {"num": 9})
    ]
    assert keys[0] & keys[1] == {key for key in keys[0] if more.get("reference") is None or "_ddpm_250" not in key}
    assert not keys[0] & keys[2]


@pytest.mark.parametrize(
    ("mode", "weight", "network"),
    [("classifier-free", 1.5, 18.0), ("unguided", 1.5, 9.0), ("classifier-free", 1.0, 9.0)],
)
def test_a_curve_lies_where_its_evaluations_were_counted(mode, weight, network):
    def summary(name):
        return Summary(name, {"fd": 1.0, "network": network}, {"fd": None, "network": None}, {})

    study = Samplers(evaluations=(10,), weight=weight)
    names = [variant(mode, name, 10) for name in RULES] + [variant(mode, REFERENCE, study.reference)]
    panels = [study.panel("fd", mode, noise, {name: summary(name) for name in names}, log=True) for noise in (0, 1)]
    assert all(list(curve.x) == [9.0] for panel in panels for curve in panel.curves)
    assert sorted(curve.name for panel in panels for curve in panel.curves) == sorted(RULES)


class TestTheFindingOfGuidances:
    PLAIN = (5.0, 6.0, 7.0)

    def found(self, seeds=3, **special):
        """Summaries by set; special: way -> its FD by seed at its first strength."""
        found = {}
        for name, way in _ways.WAYS.items():
            for strength in way.strengths:
                values = self.PLAIN if name == _ways.NONE else (99.0, 99.0, 99.0)
                if name in special and strength == way.strengths[0]:
                    values = special[name]
                rest = {"label_accuracy": 0.5, "precision": 0.5, "recall": 0.5}
                by_seed = {k: {"fd": v, **rest} for k, v in enumerate(values[:seeds])}
                key = _ways.variant(name, strength, 16)
                found[key] = Summary(key, {"fd": sum(values[:seeds]) / seeds, **rest}, {}, by_seed)
        return found

    def finding(self, seeds=3, **special):
        return Guidances(seeds=seeds).finding(self.found(seeds, **special), 16)

    def test_who_wins_is_judged_under_seeds_that_did_not_choose_it(self):
        # "apg" is the lowest in the mean by seed 0 alone; under that seed the others choose "classifier".
        said = self.finding(apg=(-9.0, 5.9, 6.9), classifier=(4.0, 5.0, 6.0))
        assert "apg at 1.5" in said and "classifier at 1" in said
        gap = paired({0: 4.0, 1: 5.9, 2: 6.9}, dict(enumerate(self.PLAIN)))
        assert f"FD 6.00, {gap.show()} with it" in said and "lower FD than none" in said

    def test_where_no_guidance_wins_it_says_so(self):
        said = self.finding(apg=(5.5, 6.5, 7.5))
        assert "no guidance has a lower FD than none, not the best either (apg at 1.5;" in said
        assert "+0.50 ± 0.00" in said and "not as good" in said

    def test_one_seed_has_differences_and_no_error_bars(self):
        said = self.finding(seeds=1, apg=(4.5,))
        assert said.endswith("FD 5.00, -0.50 with it; label accuracy 0.500, +0.000 with it.")
        table = Guidances(seeds=1).duels(self.found(1, apg=(4.5,)), 16)
        cells = {row.name: shown for row, shown in table.shown()}
        assert cells["apg - none"] == ["-0.50", "-", "+0.000", "+0.000"] and "±" not in table.caption


def test_seconds_are_compared_in_turn():
    order = []
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 4 and set(found) == {"a", "b"}


@pytest.mark.parametrize("num, size", [(300, 100), (150, 75), (10, 10), (97, 97), (211, 1)])
def test_no_image_is_made_only_to_be_thrown_away(num, size):
    assert part(num) == size and num % part(num) == 0


@pytest.mark.parametrize(
    "kind, change",
    [
        (Samplers, {"seeds": 0}),
        (Samplers, {"evaluations": ()}),
        (Samplers, {"num": 3}),
        (Guidances, {"budgets": (1,)}),
        (Guidances, {"width": 0}),
    ],
)
def test_settings_that_cannot_be_are_refused(kind, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        kind(**change)
