"""A wrong flag is named first, with what to write instead, whatever else is wrong with the command line."""

import pytest

SET = "Settings that have no flag of their own are written --set"
WRONG = {
    "sample m --ot x": "has no option '--ot'; did you mean '--out'?",
    "selftest --foo": "has no option '--foo'.",
    "selftest --devise cpu": "has no option '--devise'; did you mean '--device'?",
    "likelihood --nun 3": "has no option '--nun'; did you mean '--num'?",
    "sample m --out x --num-steps 20": "has no option '--num-steps'; did you mean '--steps'?",
    "sample m --out x --num_steps=20": "has no option '--num_steps'; did you mean '--steps'?",
    "sample m --out x --batch_size 4": f"has no option '--batch_size'. {SET} batch_size=VALUE.",
    "sample m --out x --a.model-width 4": f"has no option '--a.model-width'. {SET} a.model_width=VALUE.",
}


@pytest.mark.parametrize(("line", "says"), WRONG.items())
def test_a_wrong_flag_comes_first(line, says, adm_command):
    result = adm_command(*line.split())
    name = line.split()[0]
    assert (result.code, result.problem) == (2, f"adm: {name} {says} Try adm {name} --help.")


def test_what_has_no_flag_is_said_to_have_none(adm_command):
    problem = adm_command("sample", "--model", "m", "--out", "x").problem
    assert problem == "adm: sample: MODEL is written without --model. Try adm sample --help."


@pytest.mark.parametrize("words", [["--labels", "-1"], ["--seed", "-1"], ["--num", "-3"]])
def test_a_number_below_zero_is_no_flag(words, runs, tmp_path, adm_command):
    result = adm_command("sample", "model", "--out", tmp_path / "s", "--steps", "2", *words)
    assert result.code == 2 and "has no option" not in result.problem


@pytest.mark.parametrize("name", ["sample", "likelihood"])
def test_help_says_what_happens_without_an_option(name, adm_command):
    text = " ".join(adm_command(name, "--help").out.replace("│", " ").split())
    assert "None" not in text
    assert "as released" in text if name == "sample" else "every timestep" in text
