"""The files of July 2021, released with guided-diffusion: ADM, its classifiers and its upsamplers.

Sources: addresses and commands from that code's README; steps and scales from the commands and from ADM Table 14;
scores from ADM Tables 4, 5, 6, 15 and 16, which measured 50,000 images against the whole training set.
"""

from __future__ import annotations

from typing import Any

from adm.checkpoints._preset import Preset, Recommended, Score

URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
LICENCE = "released by OpenAI with MIT-licensed code; the model card allows research use, not commercial deployment"
IMAGENET_LIMITS = (
    "People and faces come out badly, photographs of real people may have been memorised, and guidance trades variety "
    "for quality, which can amplify the biases of ImageNet."
)
LSUN_LIMITS = (
    "Trained on photographs from the web with about one label in ten wrong; people appear in some, may have been "
    "memorised, and come out badly."
)
FILE = "hash and size of the file, which are not published"

COMMON = "--diffusion_steps 1000 --learn_sigma True --resblock_updown True --use_scale_shift_norm True"
ADM = f"--num_channels 256 --num_res_blocks 2 --attention_resolutions 32,16,8 {COMMON}"
LINEAR = "--noise_schedule linear --use_fp16 True"
CLASSIFIER = (
    "--classifier_attention_resolutions 32,16,8 --classifier_width 128 --classifier_pool attention "
    "--classifier_resblock_updown True --classifier_use_scale_shift_norm True"
)


def imagenet(size: int, file: str, num_parameters: int, flags: str, **more: Any) -> Preset:
    fields = {
        "name": f"openai/imagenet{size}",
        "what": f"ImageNet {size}x{size}, class-conditional",
        "class_table": "imagenet",
        "classifier": f"openai/imagenet{size}-classifier",
    } | more
    return Preset(
        kind="diffusion",
        file=file,
        url=URL + file,
        flags=f"--image_size {size} {flags}",
        num_parameters=num_parameters,
        image_size=size,
        licence=LICENCE,
        limits=IMAGENET_LIMITS,
        unverified=(FILE,),
        **fields,
    )


def classifier(size: int, depth: int, schedule: str, num_parameters: int, guides: tuple[str, ...] = ()) -> Preset:
    file = f"{size}x{size}_classifier.pt"
    return Preset(
        name=f"openai/imagenet{size}-classifier",
        what=f"classifier of noisy ImageNet {size}x{size}",
        kind="classifier",
        file=file,
        url=URL + file,
        flags=f"--image_size {size} --classifier_depth {depth} {CLASSIFIER} "
        f"--noise_schedule {schedule} --diffusion_steps 1000",
        num_parameters=num_parameters,
        image_size=size,
        class_table="imagenet",
        guides=guides or (f"openai/imagenet{size}",),
        licence=LICENCE,
        limits=IMAGENET_LIMITS,
        unverified=(
            FILE,
            f"that it was trained with the {schedule} schedule of 1000 steps, that of the model it guides (so the "
            "paper; no released command names the schedule of a classifier's training)",
        ),
    )


def upsampler(base: int, size: int, file: str, num_parameters: int, flags: str, scores: tuple[Score, ...]) -> Preset:
    return Preset(
        name=f"openai/imagenet{base}-to-{size}",
        what=f"ImageNet upsampler {base}x{base} to {size}x{size}, class-conditional",
        kind="upsampler",
        file=file,
        url=URL + file,
        flags=f"--large_size {size} --small_size {base} --num_channels 192 --num_res_blocks 2 --class_cond True "
        f"{flags} {COMMON} {LINEAR}",
        num_parameters=num_parameters,
        image_size=size,
        class_table="imagenet",
        scores=scores,
        recommended=(Recommended("ddpm", 250),),
        base=f"openai/imagenet{base}",
        licence=LICENCE,
        limits=IMAGENET_LIMITS,
        unverified=(FILE,),
    )


def lsun(what: str, suffix: str, scores: tuple[Score, ...], dropout: float = 0.1) -> Preset:
    file = f"lsun_{what}{suffix}.pt"
    return Preset(
        name=f"openai/lsun-{what}{suffix.replace('_', '-')}",
        what=f"LSUN {what} 256x256" + (", trained without dropout" if not dropout else ""),
        kind="diffusion",
        file=file,
        url=URL + file,
        flags=f"--image_size 256 --class_cond False --num_head_channels 64 --dropout {dropout} {ADM} {LINEAR}",
        num_parameters=552_814_086,
        image_size=256,
        scores=scores,
        recommended=(Recommended("ddpm", 1000),),
        licence=LICENCE,
        limits=LSUN_LIMITS,
        unverified=(FILE,),
    )


def plain(fid: float, sfid: float, precision: float, recall: float, inception: float | None = None) -> Score:
    return Score("no guidance, 250 DDPM steps", fid, sfid, inception, precision, recall)


def guided(
    scale: float, fid: float, sfid: float, precision: float, recall: float, inception: float | None = None
) -> Score:
    return Score(f"classifier guidance {scale}, 250 DDPM steps", fid, sfid, inception, precision, recall)


def few(scale: float, fid: float, sfid: float, precision: float, recall: float) -> Score:
    return Score(f"classifier guidance {scale}, 25 DDIM steps", fid, sfid, None, precision, recall)


def stack(base: str, fid: float, sfid: float, inception: float, precision: float, recall: float) -> Score:
    return Score(f"{base}, then 250 DDPM steps", fid, sfid, inception, precision, recall)


PRESETS: tuple[Preset, ...] = (
    imagenet(
        64,
        "64x64_diffusion.pt",
        295_904_454,
        "--class_cond True --num_channels 192 --num_res_blocks 3 --num_head_channels 64 "
        "--attention_resolutions 32,16,8 --dropout 0.1 "
        f"--noise_schedule cosine --use_new_attention_order True --use_fp16 True {COMMON}",
        scores=(plain(2.07, 4.29, 0.74, 0.63),),
        recommended=(Recommended("ddpm", 250, 1.0),),
        upsampler="openai/imagenet64-to-256",
    ),
    imagenet(
        128,
        "128x128_diffusion.pt",
        421_529_606,
        f"--class_cond True --num_heads 4 {ADM} {LINEAR}",
        scores=(
            plain(5.91, 5.09, 0.70, 0.65),
            guided(0.5, 2.97, 5.09, 0.78, 0.59),
            few(1.25, 5.98, 7.04, 0.78, 0.51),
        ),
        recommended=(Recommended("ddpm", 250, 0.5), Recommended("ddim", 25, 1.25)),
        upsampler="openai/imagenet128-to-512",
    ),
    imagenet(
        256,
        "256x256_diffusion.pt",
        553_838_086,
        f"--class_cond True --num_head_channels 64 {ADM} {LINEAR}",
        scores=(
            plain(10.94, 6.02, 0.69, 0.63, 100.98),
            guided(1.0, 4.59, 5.25, 0.82, 0.52, 186.70),
            few(2.5, 5.44, 5.32, 0.81, 0.49),
        ),
        recommended=(Recommended("ddpm", 250, 1.0), Recommended("ddim", 25, 2.5)),
    ),
    imagenet(
        256,
        "256x256_diffusion_uncond.pt",
        552_814_086,
        f"--class_cond False --num_head_channels 64 {ADM} {LINEAR}",
        name="openai/imagenet256-uncond",
        what="ImageNet 256x256, unconditional",
        class_table=None,
        scores=(plain(26.21, 6.35, 0.61, 0.63, 39.70), guided(10.0, 12.00, 10.40, 0.76, 0.44, 95.41)),
        recommended=(Recommended("ddpm", 250, 10.0),),
    ),
    imagenet(
        512,
        "512x512_diffusion.pt",
        558_997_638,
        f"--class_cond True --num_head_channels 64 {ADM} --noise_schedule linear --use_fp16 False",
        scores=(
            plain(23.24, 10.19, 0.73, 0.60, 58.06),
            guided(4.0, 7.72, 6.57, 0.87, 0.42, 172.71),
            few(9.0, 8.41, 9.67, 0.83, 0.47),
        ),
        recommended=(Recommended("ddpm", 250, 4.0), Recommended("ddim", 25, 9.0)),
    ),
    lsun(
        "bedroom",
        "",
        (
            Score("1000 DDPM steps", 1.90, 5.59, None, 0.66, 0.51),
            Score("250 DDPM steps", 2.31, 6.12, None, 0.65, 0.50),
            Score("250 DDPM steps spaced 90,60,60,20,20", 2.02, 6.12, None, 0.67, 0.50),
        ),
    ),
    lsun(
        "cat",
        "",
        (
            Score("1000 DDPM steps", 5.57, 6.69, None, 0.63, 0.52),
            Score("250 DDPM steps", 7.03),
            Score("250 DDPM steps spaced 90,60,60,20,20", 5.94),
        ),
    ),
    lsun(
        "horse",
        "",
        (
            Score("1000 DDPM steps", 2.57, 6.81, None, 0.71, 0.55),
            Score("250 DDPM steps", 3.45),
            Score("250 DDPM steps spaced 90,60,60,20,20", 2.83),
        ),
    ),
    lsun("horse", "_nodropout", (Score("1000 DDPM steps", 2.95, 5.94, None, 0.69, 0.55),), dropout=0.0),
    classifier(64, 4, "cosine", 65_438_568),
    classifier(128, 2, "linear", 42_568_040),
    classifier(256, 2, "linear", 54_096_360, ("openai/imagenet256", "openai/imagenet256-uncond")),
    classifier(512, 2, "linear", 54_448_360),
    upsampler(
        64,
        256,
        "64_256_upsampler.pt",
        311_795_910,
        "--num_heads 4 --attention_resolutions 32,16,8",
        (
            stack("250 DDPM steps at 64x64", 7.49, 5.13, 127.49, 0.72, 0.63),
            stack("classifier guidance and 250 DDPM steps at 64x64", 3.94, 6.14, 215.84, 0.83, 0.53),
        ),
    ),
    upsampler(
        128,
        512,
        "128_512_upsampler.pt",
        308_835_270,
        "--num_head_channels 64 --attention_resolutions 32,16",
        (
            stack("250 DDPM steps at 128x128", 9.96, 5.62, 121.78, 0.75, 0.64),
            stack("classifier guidance and 250 DDPM steps at 128x128", 3.85, 5.86, 221.72, 0.84, 0.53),
        ),
    ),
)
