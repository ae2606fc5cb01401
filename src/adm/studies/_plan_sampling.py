"""What sampling will need and how long it will take, before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from adm.checkpoints import store
from adm.checkpoints.load import locate
from adm.checkpoints.model_document import Model, ScheduleConfig, make_schedule
from adm.checkpoints.presets import preset_spec
from adm.diffusion.grids import Steps
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.nn.cost import Cost, cost
from adm.runtime import lookup
from adm.runtime.text import num_bytes, shown_path
from adm.studies._plan_probe import STEPS, WARM_UP, ProbeFailed, probe_sampling
from adm.studies._resolve import resolver
from adm.studies.choices import choose
from adm.studies.named_models import (
    as_diffusion,
    load_classifier,
    load_diffusion,
    named_preset,
    read_with_preset,
    refuse_other_kind,
)
from adm.studies.plan import PATIENCE, TRIES, USABLE, memory_left
from adm.studies.request import Request, prepare

__all__ = ["SamplingPlan", "open_request", "plan_sampling"]


@dataclass(frozen=True)
class SamplingPlan:
    """What is known of a sample set before it is made.

    num: images, in batches of batch_size. steps: links of the chain. costs: of each network, the model's first, for one
    evaluation of an image. available, memory: bytes that the device has left, and that this takes; None where unknown.
    largest: the most images at once. step_seconds: of a batch. seconds: in all. notes: what is worth knowing.
    """

    num: int
    batch_size: int
    steps: int
    device: torch.device
    costs: tuple[Cost, ...]
    available: int | None
    memory: int | None = None
    largest: int | None = None
    step_seconds: float | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()


def open_request(
    model: str,
    steps: Steps | None,
    sampler: str,
    guidance: Sequence[str],
    weights: str = "ema",
    precision: Literal["float32", "bfloat16"] = "float32",
    device: torch.device | str = "cpu",
) -> tuple[Request, list[Model], list[str]]:
    """The request of `adm sample`, the models that it runs, and the names of those that guide. Released models
    that are not on this machine have random weights, which cost the same; on the device "meta" all released ones."""
    guides: list[Model] = []
    names: list[str] = []

    def load_guide(text: str, classifies: bool) -> Model:
        guides.append(_released(text, device) or (load_classifier if classifies else load_diffusion)(text, device))
        names.append(text)
        return guides[-1]

    resolve = resolver(load_guide)
    preset = named_preset(model)
    if preset is not None:
        refuse_other_kind(preset)
    loaded = _released(model, device)
    if loaded is None:
        loaded, preset = read_with_preset(locate(model), weights)
    shown = shown_path(model)
    loaded = as_diffusion(loaded, shown).to(device)
    choice = choose(preset, shown, sampler, steps, guidance)
    guidances = [lookup.build("guidance", spec, resolve) if isinstance(spec, str) else spec for spec in choice.guidance]
    return prepare(loaded, choice.steps, sampler, guidances, precision), [loaded, *guides], names


def _released(name: str, device: torch.device | str) -> Model | None:
    """A released model with random weights; None for another, and for one whose weights can be had."""
    preset = named_preset(name)
    if preset is None or (str(device) != "meta" and not absent(name)):
        return None
    spec = preset_spec(preset)
    with torch.device(device):
        is_classifier = isinstance(spec.network, ClassifierConfig)
        network = EncoderClassifier(spec.network) if is_classifier else UNet(spec.network)  # type: ignore[arg-type]
    schedule = None
    if spec.noise_schedule is not None and spec.diffusion_steps is not None:
        schedule = make_schedule(ScheduleConfig(spec.noise_schedule, spec.diffusion_steps))  # type: ignore[arg-type]
    if is_classifier:
        return NoisyClassifier(network, schedule, spec.time_scale).eval()
    assert schedule is not None, "released diffusion models say their schedule"
    return DiffusionModel(network, schedule, spec.mean, spec.variance, spec.time_scale).eval()


def absent(name: str) -> bool:
    """Whether this is a released model that is not on this machine."""
    preset = named_preset(name)
    return preset is not None and store.stored(store.artifact(preset)).state != "here"


def plan_sampling(
    model: str,
    num: int,
    steps: Steps | None,
    sampler: str,
    guidance: Sequence[str],
    device: torch.device,
    batch_size: int,
    weights: str = "ema",
    precision: Literal["float32", "bfloat16"] = "float32",
    probe: bool = True,
    on_stage: Callable[[str], None] = lambda what: None,
) -> SamplingPlan:
    """The plan of `adm sample` with the same words. Raises UsageError for what does not go together."""
    words: dict[str, Any] = {"model": model, "steps": steps, "sampler": sampler, "guidance": list(guidance)}
    words |= {"weights": weights, "precision": precision}
    request, models, guides = open_request(**words, device="meta" if named_preset(model) is not None else "cpu")
    configs = [getattr(m.network, "config", None) for m in models]
    costs = tuple(cost(config) for config in configs if isinstance(config, UNetConfig | ClassifierConfig))
    batch = min(batch_size, num)
    plan = SamplingPlan(num, batch, len(request.chain), device, costs, memory_left(device))
    names = [model, *guides]
    if missing := [name for name in names if absent(name)]:
        plan = noted(plan, f"{', '.join(missing)} not on this machine: random weights cost the same")
    if not probe:
        return plan
    # Networks run one after the other, so the largest one's needs are all; its gradient keeps more than it makes.
    needed = 4 * sum(c.num_parameters for c in costs) + max((c.peak_bytes for c in costs), default=0)
    if plan.available is not None and needed > USABLE * plan.available:
        return noted(
            plan,
            f"no step was tried: with one image it would take about {num_bytes(needed)}, and {device} has "
            f"{num_bytes(plan.available)} left",
        )
    try:
        return measured(plan, words, on_stage)
    except ProbeFailed as error:
        return noted(plan, f"no step could be measured: {error}")


def measured(plan: SamplingPlan, words: dict[str, Any], on_stage: Callable[[str], None]) -> SamplingPlan:
    """The plan with what steps of a few images, and of a batch of the real size, say."""
    device, wanted = plan.device, plan.batch_size
    few = max(1, min(4, wanted // 4))
    on_stage(f"trying {WARM_UP + STEPS} steps with {few} image(s)")
    small = probe_sampling(words, few, device, PATIENCE / 2)
    size = wanted
    for attempt in range(TRIES):
        on_stage(f"trying {WARM_UP + STEPS} steps with {size} image(s)")
        try:
            large = probe_sampling(words, size, device, PATIENCE)
            break
        except ProbeFailed as error:
            if not error.out_of_memory or size <= few or attempt == TRIES - 1:
                raise
            size = max(few, size // 2)
    blocks = -(-plan.num // size)
    seconds = large.start_seconds + blocks * plan.steps * large.step_seconds
    plan = replace(plan, batch_size=size, step_seconds=large.step_seconds, seconds=seconds)
    if size < wanted:
        plan = noted(plan, f"{wanted} images at once do not fit; {size} do: --set batch_size={size}")
    if large.reserved is None or small.reserved is None:
        return plan
    per_image = (large.reserved - small.reserved) / (size - few) if size > few else 0.0
    memory = large.reserved + large.base
    largest = None
    if plan.available is not None and per_image > 0:
        largest = size + max(0, int((USABLE * plan.available - memory) / per_image))
    return replace(plan, memory=memory, largest=largest)


def noted(plan: SamplingPlan, note: str) -> SamplingPlan:
    return replace(plan, notes=(*plan.notes, note))
