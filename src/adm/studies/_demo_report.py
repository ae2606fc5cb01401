"""The demonstration's report: what was found, in words that follow from the numbers."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from adm.data.digits import Digits
from adm.metrics import nearest_neighbour, pixel_features
from adm.runtime.version import version
from adm.studies._mosaics import NeighbourBlock, SampleBlock, nearest_images, sample_picture
from adm.studies._plots import Curve, Panel, TradeOff, loss_curves, scale_curves, trade_off
from adm.studies._report import Column, Figure, Report, Row, Table, text_table, write_report
from adm.training.runlog import read_log

if TYPE_CHECKING:
    from adm.studies.demo import DemoConfig, Measurement

__all__ = ["write_demo_report"]

FD = "fd_clean_classifier"
NAMES = {"ddpm": "DDPM", "ddim": "DDIM"}
SHOWN_PER_CLASS = 5
NUM_NEIGHBOURS = 12

COLUMNS = (
    Column("label accuracy", ".1%", "higher", "share of samples in which the judge reads the digit asked for"),
    Column("FD (judge)", ".2f", "lower", "Frechet distance to held-out digits in the judge's features; not FID"),
    Column("precision", ".3f", "higher", "share of samples that lie among held-out digits"),
    Column("recall", ".3f", "higher", "share of held-out digits that the samples cover"),
    Column("nearest training digit", ".1f", None, "median root mean square distance, in grey levels of 255"),
    Column("copies", ".1%", "lower", "share of samples within 8 grey levels of a training digit"),
)
KEYS = ("label_accuracy", FD, "precision", "recall", "nearest_train_median", "nearest_train_copies")

GUIDE = (
    ("Scale", "how strongly the noisy classifier's gradient pushes each step towards the digit asked for; 0 is off."),
    ("Judge", "a classifier trained on clean training digits only; it had no part in the sampling."),
    ("Precision and recall", "with neighbourhoods of k = 3 in the judge's features (Kynkaanniemi et al. 2019)."),
    ("FD (judge)", "Frechet distance in the judge's 64 features. FID is the same in Inception's; this is not FID."),
    (
        "Bits/dim",
        "what the model needs for one grey value of 256 (a bound from above, looser for a shorter chain); to know that "
        "only 17 of them occur, and nothing else, takes 4.09.",
    ),
    ("Nearest training digit", "samples that were copies would lie far nearer than held-out real digits do."),
)


def write_demo_report(
    out: Path,
    config: DemoConfig,
    measurements: Sequence[Measurement],
    real: Mapping[str, Mapping[str, float]],
    bits: Mapping[str, Any],
    models: Mapping[str, str],
    device: str,
) -> tuple[Path, str]:
    """Write report.html and pictures/ into `out`; returns the report's path and the table as text.

    models: what each trained model is, in a few words.
    """
    table = _table(measurements, real)
    report = Report(
        title="Guided diffusion on handwritten digits",
        summary=_summary(measurements),
        figures=_figures(out, measurements, real),
        table=table,
        conditions=_conditions(config, measurements, real, bits, models, device),
        guide=GUIDE,
        highlights=_highlights(measurements, bits),
    )
    paths = write_report(out / "report.html", report)
    return paths[0], f"{text_table(table)}\n\n{_in_bits(bits)}"


def _in_bits(bits: Mapping[str, Any]) -> str:
    return (
        f"bits/dim of {bits['num']} held-out digits: {bits['bits_per_dim']:.3f} +- {bits['standard_error']:.3f} "
        f"(standard error; bound of the {bits['steps']}-step chain)"
    )


def _table(measurements: Sequence[Measurement], real: Mapping[str, Mapping[str, float]]) -> Table:
    rows = [Row(f"{NAMES[m.sampler]}, scale {m.scale:g}", [m.values[key] for key in KEYS]) for m in measurements]
    rows.append(Row("real: training digits", [real["train"].get(key) for key in KEYS], real=True))
    rows.append(Row("real: held-out digits", [real["held_out"].get(key) for key in KEYS], real=True))
    return Table(COLUMNS, rows, caption="FD, precision and recall are against the held-out digits.")


def _summary(measurements: Sequence[Measurement]) -> list[str]:
    sentences = [
        "An unconditional ADM with learned variance and a noisy classifier were trained on 1,198 of scikit-learn's "
        "8x8 digits. The classifier's gradient then steered the same model, from the same seeds, towards each digit."
    ]
    for sampler in NAMES:
        low, high = _ends(measurements, sampler)
        a, b = low.values, high.values
        claim = b["label_accuracy"] >= 0.95 and b["recall"] < a["recall"]
        verdict = "the paper's trade of diversity for fidelity" if claim else "not what the paper claims"
        sentences.append(
            f"{NAMES[sampler]}: from scale {low.scale:g} to {high.scale:g} label accuracy goes from "
            f"{a['label_accuracy']:.1%} to {b['label_accuracy']:.1%}, precision from {a['precision']:.2f} to "
            f"{b['precision']:.2f} and recall from {a['recall']:.2f} to {b['recall']:.2f}: {verdict}."
        )
    return sentences


def _highlights(measurements: Sequence[Measurement], bits: Mapping[str, Any]) -> list[tuple[str, str]]:
    low, high = _ends(measurements, "ddpm")
    return [
        (f"{low.values['label_accuracy']:.1%}", f"of DDPM samples show the digit asked for at scale {low.scale:g}"),
        (f"{high.values['label_accuracy']:.1%}", f"do at scale {high.scale:g}"),
        (f"{low.values['recall']:.2f} to {high.values['recall']:.2f}", "is what recall does meanwhile"),
        (
            f"{bits['bits_per_dim']:.2f}",
            f"bits/dim of {bits['num']} held-out digits (bound with {bits['steps']} steps)",
        ),
    ]


def _figures(out: Path, measurements: Sequence[Measurement], real: Mapping[str, Mapping[str, float]]) -> list[Figure]:
    train = real["train"]
    anchors = {"real training digits": (train["recall"], train["precision"])}
    lines = [
        TradeOff(
            NAMES[sampler],
            [m.scale for m in some],
            [m.values["precision"] for m in some],
            [m.values["recall"] for m in some],
        )
        for sampler in NAMES
        for some in [[m for m in measurements if m.sampler == sampler]]
    ]
    return [
        Figure(
            "samples",
            "Samples of each digit, by scale",
            sample_picture([_block(m) for m in measurements], Digits.class_names),
            "A grid of generated digits: a row for each class, a block for each guidance scale and sampler.",
            "The same seeds at every scale. What the judge reads as another digit than asked for is in colour.",
        ),
        Figure(
            "trade-off",
            "Precision against recall",
            trade_off(lines, anchors),
            "Curves of precision against recall over the guidance scale for DDPM and DDIM.",
            "Each point is a guidance scale: guidance buys fidelity with diversity.",
        ),
        Figure("scales", "Over the scale", _scales(measurements), "Label accuracy and FD over the guidance scale."),
        Figure("losses", "Training", _losses(out), "Loss curves of the diffusion model and the noisy classifier."),
        Figure(
            "nearest",
            "Memorised?",
            _nearest(measurements),
            "Samples, and held-out real digits, above the training digits nearest to them.",
            "Held-out real digits are the yardstick: a model that copies lies clearly nearer than they do.",
        ),
    ]


def _block(m: Measurement) -> SampleBlock:
    """The first samples of each class; labels run 0..9 in turn."""
    by_class = [np.flatnonzero(m.label == c)[:SHOWN_PER_CLASS] for c in range(10)]
    shown = min(map(len, by_class))
    rows = np.stack([index[:shown] for index in by_class])
    return SampleBlock(NAMES[m.sampler], m.scale, m.images[rows], m.predicted[rows] == m.label[rows])


def _scales(measurements: Sequence[Measurement]) -> bytes:
    def curves(key: str) -> list[Curve]:
        return [
            Curve(NAMES[sampler], [m.scale for m in some], [m.values[key] for m in some])
            for sampler in NAMES
            for some in [[m for m in measurements if m.sampler == sampler]]
        ]

    accuracy = Panel("label accuracy", curves("label_accuracy"), percent=True, levels={"chance": 0.1})
    return scale_curves([accuracy, Panel("FD (judge)", curves(FD)), Panel("recall", curves("recall"))])


def _losses(out: Path) -> bytes:
    diffusion, classifier = read_log(out / "diffusion" / "log.jsonl"), read_log(out / "classifier" / "log.jsonl")

    def curve(lines: Sequence[Mapping[str, float]], key: str, name: str) -> Curve:
        return Curve(name, [line["step"] for line in lines], [line[key] for line in lines])

    return loss_curves(
        [
            Panel("diffusion: error of eps", [curve(diffusion, "mse", "mse")], log=True),
            Panel("diffusion: bound, bits/dim", [curve(diffusion, "vb", "vb")], log=True),
            Panel(
                "classifier: accuracy on noisy digits",
                [curve(classifier, "accuracy", "all noise levels")],
                percent=True,
                levels={"chance": 0.1},
            ),
        ]
    )


def _nearest(measurements: Sequence[Measurement]) -> bytes:
    train, held_out = Digits("train").images, Digits("test").images
    low, high = _ends(measurements, "ddpm")
    sets = {
        f"DDPM, scale {low.scale:g}": low.images,
        f"DDPM, scale {high.scale:g}": high.images,
        "held-out real digits": held_out,
    }
    return nearest_images([_neighbours(title, images, train) for title, images in sets.items()])


def _neighbours(title: str, images: np.ndarray, train: np.ndarray) -> NeighbourBlock:
    some = images[:NUM_NEIGHBOURS]
    distance, index = nearest_neighbour(pixel_features(some).values, pixel_features(train).values)
    return NeighbourBlock(title, some, train[index.numpy()], distance.tolist())


def _ends(measurements: Sequence[Measurement], sampler: str) -> tuple[Measurement, Measurement]:
    """The unguided set and that of the highest scale."""
    some = sorted((m for m in measurements if m.sampler == sampler), key=lambda m: m.scale)
    return some[0], some[-1]


def _conditions(
    config: DemoConfig,
    measurements: Sequence[Measurement],
    real: Mapping[str, Mapping[str, float]],
    bits: Mapping[str, Any],
    models: Mapping[str, str],
    device: str,
) -> dict[str, object]:
    num = len(measurements[0].images)
    return {
        "data": "scikit-learn digits, 8x8, 17 grey levels as round(255 k / 16); 1,198 to train on, 599 held out",
        "diffusion model": f"{models['diffusion model']}, hybrid loss, {config.diffusion_steps} steps of "
        f"{config.batch_size}, averaged weights",
        "noisy classifier": f"{models['noisy classifier']}, {config.classifier_steps} steps of {config.batch_size}, "
        "averaged weights",
        "samples": f"{num} a set, {config.sample_steps} steps, seeds {config.seed} and up, x_0 clipped",
        "guidance": "gradient at x_t: DDPM adds Sigma s g to the mean (ADM Alg. 1), DDIM folds it into eps (Alg. 2)",
        "judge": f"{config.judge_steps} steps on clean training digits; "
        f"{real['held_out']['label_accuracy']:.1%} right on held-out ones",
        "precision, recall": f"k = 3, judge's features, {num} samples against 599 held-out digits",
        "bits/dim": f"{bits['bits_per_dim']:.3f} +- {bits['standard_error']:.3f} (standard error), {bits['num']} "
        f"held-out digits, bound of the {bits['steps']}-step chain, 256 levels, x_0 clipped",
        "versions": f"adm {version()}, torch {torch.__version__}, Python {platform.python_version()}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
    }
