"""What is chosen where the user leaves it open: classifier, scale and steps as released, or a default that is said."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from adm.checkpoints.presets import Preset, Recommended
from adm.diffusion.grids import Steps
from adm.diffusion.schedule import Schedule
from adm.guidance import Guidance
from adm.runtime import lookup
from adm.runtime._spelling import spelled
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line
from adm.sampling import Sampler, timesteps_for
from adm.studies._resolve import names_of, nested_options, unwrapped

__all__ = ["Choice", "Guidances", "as_guidances", "check_sampler", "choose", "default_steps", "full_spec"]

Guidances = str | Guidance | Sequence[str | Guidance]
"""Guidances as specs or objects: one, or several."""

DEFAULT_STEPS = {"ddpm": 250, "ddim": 50}
OTHER_STEPS = 25
"""Of samplers that are not named above: higher-order rules have converged by then."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Guidances with nothing left open, and the steps: the given ones, the recommended ones, or None for a default.

    chosen: (what, where it is from) of all that the user did not say; None is the released setting for this very
    sampler, and an empty origin needs no words.
    """

    guidance: tuple[str | Guidance, ...]
    steps: Steps | None
    sampler: str
    chosen: tuple[tuple[str, str | None], ...]

    def said(self, steps: int) -> str | None:
        """One line that names all that was chosen; None when nothing was. steps: what they became."""
        chosen = list(self.chosen)
        if self.steps is None:
            chosen.append((f"{steps} steps of {self.sampler}", "a default"))
        if not chosen:
            return None
        if all(not origin for _, origin in chosen):
            released = any(origin is None for _, origin in chosen)
            return f"using {', '.join(what for what, _ in chosen)}" + (" (the released settings)" if released else "")
        words = [what + (f" ({origin or 'released'})" if origin != "" else "") for what, origin in chosen]
        return f"using {', '.join(words)}"


def choose(
    preset: Preset | None,
    name: str,
    sampler: str | Sampler,
    steps: Steps | None,
    guidance: Guidances,
) -> Choice:
    """Fill in what is open by the preset behind a model.

    A spec `classifier`, also inside of another guidance, without a classifier takes the preset's; without a scale, that
    one's recommended scale. steps: None takes those of this sampler. name: the model's, for errors. Raises UsageError
    for a model without a classifier of its own, and for what is no sampler or guidance.
    """
    check_sampler(sampler)
    guidance = as_guidances(guidance)
    rule = _name_of(sampler)
    chosen: list[tuple[str, str | None]] = []
    completed = [_completed(g, preset, name, rule, chosen) if isinstance(g, str) else g for g in guidance]
    is_guided = any(isinstance(g, str) and "classifier" in names_of(g) for g in guidance)
    released = None if preset is None else _recommended(preset, rule, is_guided)
    if steps is None and released is not None:
        steps = released.steps
        chosen.append((f"{steps} steps of {rule}", None))
    return Choice(tuple(completed), steps, rule, tuple(chosen))


def as_guidances(guidance: Guidances) -> tuple[str | Guidance, ...]:
    """The guidances, also if there is one without a list around it. Raises UsageError for what is none."""
    if isinstance(guidance, str) or callable(guidance):
        guidance = (guidance,)
    try:
        given = tuple(guidance)
    except TypeError:
        given = (guidance,)  # type: ignore[assignment]
    for one in given:
        if isinstance(one, type):
            raise UsageError(f"guidance {one.__name__} is a class. Write {_call_of(one)}.")
        if not isinstance(one, str) and not callable(one):
            raise UsageError(
                f"guidance {one_line(one, 60)!r} is no guidance. Give a spec such as classifier_free:weight=2, an "
                "object such as adm.Clip(), or a list of these."
            )
    return given


def check_sampler(sampler: str | Sampler) -> None:
    """UsageError for what is neither a spec nor a sampler, such as the class of one."""
    if isinstance(sampler, type):
        raise UsageError(f"sampler {sampler.__name__} is a class. Write {_call_of(sampler)}.")
    if not isinstance(sampler, str) and not all(callable(getattr(sampler, name, None)) for name in ("init", "step")):
        raise UsageError(
            f"sampler {one_line(sampler, 60)!r} is no sampler. Give a spec such as ddim:eta=0.3, or an object such as "
            "adm.DDIM()."
        )


def _call_of(component: type) -> str:
    """How an object of the class is made: adm.UniPC(), or adm.LossGuidance(...) where something must be given."""
    try:
        arguments = inspect.signature(component).parameters.values()
        needed = any(a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD) for a in arguments)
    except (TypeError, ValueError):  # some built-in classes have none
        needed = True
    package = "adm." if component.__module__.startswith("adm.") else ""
    return f"{package}{component.__name__}({'...' if needed else ''})"


def _completed(text: str, preset: Preset | None, name: str, rule: str, chosen: list[tuple[str, str | None]]) -> str:
    """The spec with the classifier and scale that it leaves open, which are noted in `chosen`."""
    spec = lookup.parse_spec(text)
    options = dict(spec.options)
    if inner := nested_options(text):
        for option in inner:
            options[option] = f"({_completed(unwrapped(options[option]), preset, name, rule, chosen)})"
        return _spec_text(spec.name, options)
    if spec.name != "classifier":
        return text
    if "classifier" not in options:
        if preset is None or preset.classifier is None:
            raise UsageError(
                f"classifier needs 'classifier': none is known for {one_line(name, 60)}. "
                "Write classifier:classifier=RUN,scale=2 with one that was trained for it."
            )
        options = {"classifier": preset.classifier} | options
        chosen.append((preset.classifier, ""))
    if preset is None or options["classifier"] != preset.classifier or "scale" in options:
        return _spec_text(spec.name, options)
    known = _recommended(preset, rule, is_guided=True) or _any_recommended(preset)
    if known is not None and known.scale is not None:
        options["scale"] = str(known.scale)
        origin = None if known.sampler == rule else f"released for {known.steps} steps of {known.sampler}"
        chosen.append((f"scale {known.scale}", origin))
    return _spec_text(spec.name, options)


def _spec_text(name: str, options: dict[str, str]) -> str:
    return f"{name}:{','.join(f'{key}={value}' for key, value in options.items())}" if options else name


def _recommended(preset: Preset, rule: str, is_guided: bool) -> Recommended | None:
    """What is recommended with this sampler: with a scale if guided, without one if not, as far as there is such."""
    known = [r for r in preset.recommended if lookup.parse_spec(r.sampler).name == rule]
    return next((r for r in known if (r.scale is not None) == is_guided), known[0] if known else None)


def _any_recommended(preset: Preset) -> Recommended | None:
    return next((r for r in preset.recommended if r.scale is not None), None)


def _name_of(sampler: str | Sampler) -> str:
    """The name of its file: what the sampler is called on the command line."""
    if isinstance(sampler, str):
        return lookup.parse_spec(sampler).name
    return type(sampler).__module__.rpartition(".")[2]


def default_steps(sampler: Sampler, schedule: Schedule) -> int:
    """The steps of a sampler for a model that recommends none: 250 of DDPM, 50 of DDIM, else 25, or the nearest that
    exist."""
    num_timesteps = schedule.num_timesteps
    wanted = min(DEFAULT_STEPS.get(_name_of(sampler), OTHER_STEPS), num_timesteps)
    for steps in (wanted, len(range(0, num_timesteps, max(1, num_timesteps // wanted)))):
        try:
            timesteps_for(sampler, schedule, steps)
        except ValueError:
            continue
        return steps
    return num_timesteps


def full_spec(room: str, text: str) -> str:
    """The spec with the defaults of all options that text can spell: what a set was made with, whatever they become.

    The name is that of the component's file, dashes or not.
    """
    spec = lookup.parse_spec(text)
    options = dict(spec.options)
    for option in nested_options(text) if room == "guidance" else ():
        options[option] = f"({full_spec(room, unwrapped(options[option]))})"
    for name, argument in inspect.signature(lookup.find(room, spec.name)).parameters.items():
        if isinstance(argument.default, bool):
            options.setdefault(name, str(argument.default).lower())
        elif isinstance(argument.default, (int, float, str)):
            options.setdefault(name, str(argument.default))
        elif isinstance(argument.default, tuple):
            options.setdefault(name, f"({spelled(argument.default)})")
    return _spec_text(spec.name.replace("-", "_"), options)
