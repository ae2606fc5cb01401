"""--help beside a sampler, a guidance or a study says what that is and what its options mean."""

import pytest


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["sample", "--sampler", "unipc:order=3", "--help"], ["unipc", "order=2", "b=bh2", "reach=1"]),
        (["sample", "m", "-h", "--guidance=clip"], ["clip", "limit=1", "after=false"]),
        (["upsample", "--help", "--guidance", "apg", "--sampler", "heun"], ["apg", "momentum=0", "heun", "churn=0"]),
        (["study", "guidances:seeds=1", "--out", "x", "--help"], ["guidances", "budgets=(16,48)", "rounds=5"]),
        (["study", "--help", "fit-timesteps"], ["fit_timesteps", "teacher=dpm_solver_2m"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_help_that_names_components_is_about_them(words, shown, adm_command):
    result = adm_command(*words)
    assert result.code == 0 and "usage:" not in result.out
    for word in shown:
        assert f"{word}: " in result.out or f"{word}," in result.out, word


def test_help_of_what_does_not_exist_is_refused_and_other_help_is_the_command_s(adm_command):
    assert adm_command("sample", "--sampler", "unipcc", "--help").problem.startswith(
        "adm: there is no sampler 'unipcc'; did you mean 'unipc'?"
    )
    for words in (["sample", "--help"], ["sample", "unipc", "--help"], ["study", "--help"]):
        assert "usage:" in adm_command(*words).out
