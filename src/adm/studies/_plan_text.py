"""A plan as lines for people."""

from __future__ import annotations

from adm.runtime.text import num_bytes
from adm.studies._plan_sampling import SamplingPlan
from adm.studies.plan import TrainingPlan, flops, headline

__all__ = ["sampling_text", "training_text"]

Row = tuple[str, str]


def training_text(plan: TrainingPlan) -> str:
    """The headline, then a table."""
    cost, loop = plan.cost, plan.config.loop
    rows = [
        ("parameters", f"{cost.num_parameters:,}"),
        ("operations", f"{flops(cost.forward_flops)} to evaluate an image; {flops(cost.step_flops)} to train on it"),
        ("", f"{flops(cost.step_flops * loop.batch_size)} a step"),
        (f"memory{_of_each(plan)} by shapes", f"{num_bytes(cost.peak)} with {cost.microbatch} image(s) at once:"),
        (
            "",
            f"weights {num_bytes(cost.weights)}, gradients {num_bytes(cost.gradients)}, "
            f"AdamW {num_bytes(cost.optimizer)}, EMA {num_bytes(cost.ema)}, activations {num_bytes(cost.activations)}",
        ),
    ]
    if plan.memory is not None:
        rows.append((f"memory{_of_each(plan)} measured", f"{num_bytes(plan.memory)}{_at_once(plan)}"))
    rows += [(f"{plan.device} has left", "not known" if plan.available is None else num_bytes(plan.available))]
    rows += _what_fits(plan)
    rows.append(("disk", f"{num_bytes(plan.disk)}; {num_bytes(cost.checkpoint)} a checkpoint"))
    if plan.step_seconds is not None and plan.images_per_second is not None:
        speed = flops(cost.step_flops * plan.images_per_second)
        rows.append(
            (
                "speed",
                f"{duration(plan.step_seconds)} a step, {plan.images_per_second:.3g} images/s, {speed} per second",
            )
        )
    if plan.parts:
        rows.append(("time in all", duration(sum(plan.parts.values()))))
        rows.append(("", ", ".join(f"{what} {duration(seconds)}" for what, seconds in plan.parts.items() if seconds)))
    return "\n".join(
        [
            headline(plan.config, plan.device, plan.processes)[0],
            *_table(rows),
            *(f"note: {note}" for note in plan.notes),
        ]
    )


def sampling_text(plan: SamplingPlan, model: str) -> str:
    """What is sampled, then a table."""
    per_step = sum(cost.forward_flops for cost in plan.costs)
    rows = [
        ("parameters", " + ".join(f"{cost.num_parameters:,}" for cost in plan.costs)),
        ("operations", f"{flops(per_step)} to evaluate the network(s) on an image once, without gradients"),
        (
            "memory by shapes",
            num_bytes(sum(4 * c.num_parameters for c in plan.costs))
            + " of weights, at most "
            + num_bytes(max(c.peak_bytes for c in plan.costs))
            + " an image at once",
        ),
    ]
    if plan.memory is not None:
        rows.append(("memory measured", num_bytes(plan.memory)))
    rows.append((f"{plan.device} has left", "not known" if plan.available is None else num_bytes(plan.available)))
    if plan.largest is not None:
        rows.append(("fits", f"up to about {plan.largest:,} images at once: --set batch_size={plan.largest}"))
    if plan.step_seconds is not None and plan.seconds is not None:
        rows.append(("speed", f"{duration(plan.step_seconds)} a step of {plan.batch_size} image(s)"))
        rows.append(("time in all", f"{duration(plan.seconds)}, {plan.num / plan.seconds:.3g} images/s"))
    first = f"sampling {plan.num} image(s) of {model}: {plan.steps} steps, {plan.batch_size} at once, on {plan.device}"
    return "\n".join([first, *_table(rows), *(f"note: {note}" for note in plan.notes)])


def _of_each(plan: TrainingPlan) -> str:
    return " of each" if plan.processes > 1 else ""


def _at_once(plan: TrainingPlan) -> str:
    fits = plan.fits
    return "" if fits is None or fits >= plan.cost.microbatch else f" with {fits} image(s) at once"


def _what_fits(plan: TrainingPlan) -> list[Row]:
    if plan.available is None:
        return []
    wanted = plan.cost.microbatch
    if plan.fits is None:
        return [("fits", "not even one image at once; --set network.checkpoint_blocks=true needs less")]
    if plan.fits < wanted:
        return [("fits", f"{plan.fits} image(s) at once: --set loop.microbatch={plan.fits} gives the same update")]
    up_to = "" if plan.largest is None else f"; as many as {plan.largest:,} at once would"
    return [("fits", f"the {wanted} image(s) at once that it takes{up_to}")]


def _table(rows: list[Row]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def duration(seconds: float) -> str:
    """Seconds as a person says them: 12 ms, 3.4 s, 5 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24:,} d {hours % 24} h"
