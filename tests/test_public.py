"""The public names: frozen, cheap to import, and complete."""

import subprocess
import sys

import pytest

import adm
from adm.runtime import lookup

NAMES = {
    *("AdaptiveProjectedGuidance", "Autoguidance", "ClassifierFreeGuidance", "DynamicThreshold", "EpsilonScaling"),
    *("DPMSolver2M", "DPMSolver3M", "DPMSolverSDE", "Euler", "Heun", "IPNDM", "UniPC"),
    *("CleanClassifierGuidance", "Interval", "LossGuidance", "PerturbedAttention"),
    *("Chain", "Condition", "DDIM", "DDPM", "ClassifierGuidance", "Clip", "Denoiser", "DiffusionModel", "Features"),
    *("Guidance", "Link", "LossTerms", "Metric", "Noise", "NoisyClassifier", "Objective", "Prediction"),
    *("RecordedNoise", "Sampler", "Schedule", "SeededNoise", "State", "Statistics", "convert", "cosine", "generate"),
    *("guide", "linear", "load", "sample", "spaced", "strided", "Evaluator", "evaluate", "edm", "flow", "upsample"),
}


def run(code, cwd=None):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=120)


def test_the_names_are_these_and_more_only_by_addition():
    assert set(adm.__all__) == NAMES
    assert len(adm.__all__) == len(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_name_is_there_and_explains_itself(name):
    value = getattr(adm, name)
    assert value.__doc__
    assert name in dir(adm)


@pytest.mark.parametrize("room", ["sampling", "guidance"])
def test_the_class_of_each_component_file_is_public_without_an_entry(room):
    for name in lookup.available(room):
        component = lookup.find(room, name)
        assert getattr(adm, component.__name__) is component
        assert component.__name__ in adm.__all__


def test_a_new_component_file_is_public_by_being_there(tmp_path, monkeypatch):
    import adm.sampling

    (tmp_path / "leap_frog.py").write_text("__all__ = ['LeapFrog']\nclass LeapFrog:\n    'Leaps.'\n")
    monkeypatch.setattr(adm.sampling, "__path__", [*adm.sampling.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "adm.sampling.leap_frog", raising=False)
    try:
        assert adm.LeapFrog.__doc__ == "Leaps."
        assert lookup.find("sampling", "leap-frog") is adm.LeapFrog
    finally:
        vars(adm).pop("LeapFrog", None)
        sys.modules.pop("adm.sampling.leap_frog", None)
        vars(adm.sampling).pop("leap_frog", None)


@pytest.mark.parametrize("name", ["Nothing", "_private", "ddim"])
def test_other_names_are_attribute_errors(name):
    with pytest.raises(AttributeError, match=f"module 'adm' has no attribute '{name}'"):
        getattr(adm, name)


def test_importing_adm_and_the_command_line_loads_nothing_heavy(tmp_path):
    code = """
import sys
import adm
import adm.cli.main
from adm.cli.main import commands, main
commands()
main(["--help"])
heavy = {"torch", "numpy", "PIL", "matplotlib", "sklearn", "pydantic", "safetensors"} & set(sys.modules)
assert not heavy, heavy
adm.linear
assert "torch" in sys.modules and "matplotlib" not in sys.modules and "sklearn" not in sys.modules
"""
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_version_is_text():
    assert adm.__version__.count(".") >= 2
