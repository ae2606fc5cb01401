"""A wheel of this repository works from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel unpacked by pip and nothing else of this repository."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    source = ["pyproject.toml", "README.md", "LICENSE", "src"]
    (folder / "source").mkdir()
    tracked = [name for name in source if (REPOSITORY / name).exists()]
    subprocess.run(["cp", "-r", *tracked, str(folder / "source")], cwd=REPOSITORY, check=True)
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder


def run(installed, *words, code=None):
    there = installed / "elsewhere"
    there.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(installed / "site")}
    program = [sys.executable, "-c", code] if code else [str(installed / "site" / "bin" / "adm"), *words]
    return subprocess.run(program, cwd=there, env=environment, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_the_package_its_template_and_its_licence_and_no_tests(installed):
    (wheel,) = installed.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "adm/py.typed" in names and any(name.startswith("adm/studies/templates/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]
    here = {str(path.relative_to(REPOSITORY / "src")) for path in (REPOSITORY / "src" / "adm").rglob("*.py")}
    assert here <= set(names)


def test_the_package_that_runs_is_the_installed_one(installed):
    result = run(installed, code="import adm; print(adm.__file__, adm.__version__)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(installed / "site" / "adm")), result.stdout


def test_its_command_explains_itself_and_passes_its_selftest(installed):
    for words in (["--help"], ["--version"], ["sample", "--help"], ["selftest", "--device", "cpu"]):
        result = run(installed, *words)
        assert (result.returncode, result.stderr) == (0, ""), (words, result.stderr)
    result = run(installed, "sample", "nowhere", "--out", "x")
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)


def test_a_small_demo_makes_its_report(installed):
    small = [
        "diffusion_steps=2",
        "classifier_steps=2",
        "judge_steps=2",
        "scales=0,1",
        "num_per_class=1",
        "sample_steps=2",
    ]
    settings = [word for setting in [*small, "likelihood_num=2", "likelihood_steps=2"] for word in ("--set", setting)]
    result = run(installed, "demo", "--out", "demo", *settings)
    assert result.returncode == 0, result.stderr
    assert (installed / "elsewhere" / "demo" / "report.html").stat().st_size > 10_000
