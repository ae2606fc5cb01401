"""The files of March 2021, released with improved-diffusion.

Sources: addresses and commands from that code's README, whose defaults of rescale_timesteps and rescale_learned_sigmas
(True) and of the upsampler's sizes are written out here. Of the scores only those that ADM Table 5 repeats and
attributes without doubt.
"""

from __future__ import annotations

from typing import Any

from adm.checkpoints._preset import Preset, Recommended, Score

URL = "https://openaipublic.blob.core.windows.net/diffusion/march-2021/"
LICENCE = "released by OpenAI with MIT-licensed code; there is no model card: take research use as what is meant"
LIMITS = (
    "No model card states limits; the data are photographs from the web, with what biases and private pictures they "
    "have, and people come out badly."
)
FILE = "hash and size of the file, which are not published"
RESCALED = "--rescale_learned_sigmas True --rescale_timesteps True"
UNSCALED = "--rescale_learned_sigmas False --rescale_timesteps False"
COSINE = "--diffusion_steps 4000 --noise_schedule cosine"


def released(
    name: str, what: str, file: str, num_parameters: int, flags: str, image_size: int, steps: int = 250, **more: Any
) -> Preset:
    fields = {"kind": "diffusion"} | more
    return Preset(
        name=f"openai/iddpm-{name}",
        what=what,
        file=file,
        url=URL + file,
        flags=f"{flags} --learn_sigma True",
        num_parameters=num_parameters,
        image_size=image_size,
        recommended=(Recommended("ddpm", steps),),
        licence=LICENCE,
        limits=LIMITS,
        unverified=(FILE,),
        **fields,
    )


IMAGENET64 = f"--image_size 64 --num_channels 128 --num_res_blocks 3 {COSINE} {RESCALED}"
CIFAR10 = f"--image_size 32 --num_channels 128 --num_res_blocks 3 --dropout 0.3 {COSINE} {RESCALED}"
LSUN = (
    "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --use_scale_shift_norm False "
    f"--attention_resolutions 16 --diffusion_steps 1000 --noise_schedule linear {UNSCALED}"
)

PRESETS: tuple[Preset, ...] = (
    released(
        "imagenet64-uncond",
        "ImageNet 64x64, unconditional (L_hybrid)",
        "imagenet64_uncond_100M_1500K.pt",
        121_063_942,
        IMAGENET64,
        64,
    ),
    released(
        "imagenet64-uncond-vlb",
        "ImageNet 64x64, unconditional (L_vlb: for likelihoods)",
        "imagenet64_uncond_vlb_100M_1500K.pt",
        121_063_942,
        f"{IMAGENET64} --use_kl True",
        64,
    ),
    released(
        "imagenet64",
        "ImageNet 64x64, class-conditional",
        "imagenet64_cond_270M_250K.pt",
        273_049_350,
        f"--image_size 64 --num_channels 192 --num_res_blocks 3 --class_cond True {COSINE} {UNSCALED}",
        64,
        class_table="imagenet",
        scores=(Score("250 DDPM steps", 2.92, 3.79, None, 0.74, 0.62),),
        upsampler="openai/iddpm-imagenet64-to-256",
    ),
    released(
        "cifar10-uncond",
        "CIFAR-10 32x32, unconditional (L_hybrid)",
        "cifar10_uncond_50M_500K.pt",
        52_546_438,
        CIFAR10,
        32,
    ),
    released(
        "cifar10-uncond-vlb",
        "CIFAR-10 32x32, unconditional (L_vlb: for likelihoods)",
        "cifar10_uncond_vlb_50M_500K.pt",
        52_546_438,
        f"{CIFAR10} --use_kl True",
        32,
    ),
    released(
        "imagenet64-to-256",
        "ImageNet upsampler 64x64 to 256x256, class-conditional",
        "upsample_cond_500K.pt",
        279_792_390,
        "--large_size 256 --small_size 64 --num_channels 192 --num_res_blocks 2 --class_cond True "
        f"--diffusion_steps 4000 --noise_schedule linear {UNSCALED}",
        256,
        kind="upsampler",
        class_table="imagenet",
        base="openai/iddpm-imagenet64",
    ),
    released(
        "lsun-bs128",
        "LSUN bedroom 256x256 (batch 128, 1.2M steps)",
        "lsun_uncond_100M_1200K_bs128.pt",
        113_676_678,
        LSUN,
        256,
        1000,
    ),
    released(
        "lsun-bs64",
        "LSUN bedroom 256x256 (batch 64, 2.4M steps)",
        "lsun_uncond_100M_2400K_bs64.pt",
        113_676_678,
        LSUN,
        256,
        1000,
    ),
)
