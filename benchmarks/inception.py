"""Speed of the Inception features against torch-fidelity's network: the same weights, the same images, in turns.

    python benchmarks/inception.py --torch-fidelity ~/src/torch-fidelity

Prints milliseconds per image of each, the median of the ratios with their spread, how far the features are apart, and
what bfloat16 costs in accuracy on the recorded images. Nothing is downloaded; the weights are random.
"""

from __future__ import annotations

import argparse
import importlib
import math
import platform
import resource
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adm.metrics._inception import InceptionNetwork
from adm.metrics._inception_weights import expected_shapes
from adm.metrics.extractors.inception import InceptionExtractor

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "metrics"
Pool = Callable[[Tensor], Tensor]
TAPS = {"pool": "pool", "spatial": "spatial", "logits": "logits_unbiased"}


def random_weights(seed: int = 77) -> dict[str, Tensor]:
    """A whole state dict by torchvision's names, made by the recipe of the recorded values."""
    with torch.device("meta"):
        shapes = expected_shapes(InceptionNetwork())
    shapes |= {name.replace("bn.bias", "bn.weight"): shape for name, shape in shapes.items() if "bn.bias" in name}
    shapes["fc.bias"] = shapes["fc.weight"][:1]
    rng = np.random.RandomState(seed)
    weights = {}
    for name in sorted(shapes):
        z = rng.standard_normal(shapes[name])
        if name.endswith("running_var"):
            z = 0.5 + 0.5 * abs(z)
        elif name.endswith("bn.weight"):
            z = np.ones(shapes[name])
        elif name.endswith("weight"):
            z = z * math.sqrt(2 / math.prod(shapes[name][1:]))
        else:
            z = 0.1 * z
        weights[name] = torch.from_numpy(z.astype(np.float32))
    counts = {
        name.replace("bn.bias", "bn.num_batches_tracked"): torch.tensor(0) for name in shapes if "bn.bias" in name
    }
    return weights | counts


def torch_fidelity(checkout: Path, weights: Path, device: torch.device) -> Pool:
    """Its network from a checkout; the package itself is not imported, since that needs torchvision."""
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(checkout / "torch_fidelity")]
    sys.modules["torch_fidelity"] = package
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        network = module.FeatureExtractorInceptionV3(
            "inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        )
    except (ImportError, OSError, AttributeError) as error:
        sys.exit(f"{checkout}: its Inception network cannot be loaded ({error}). Give a checkout of torch-fidelity.")
    network = network.to(device)

    def pool(images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(images.permute(0, 3, 1, 2).contiguous().to(device))[0]

    return pool


def milliseconds(pool: Pool, images: Tensor, batch_size: int, device: torch.device) -> float:
    """Per image, of one pass over all of them."""
    start = time.perf_counter()
    for batch in images.split(batch_size):
        pool(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start) / len(images)


def recorded_differences(extractor: InceptionExtractor) -> str:
    """Largest difference from the recorded features over their largest value, by tap."""
    recorded = np.load(GOLDEN / "inception.npz")
    sizes = list(dict.fromkeys(name.split("_")[0] for name in recorded.files))
    worst = dict.fromkeys(TAPS, 0.0)
    for i, size in enumerate(sizes):
        shape = (2, *(int(side) for side in size.split("x")), 3)
        images = torch.from_numpy(np.random.RandomState(40 + i).randint(0, 256, shape).astype(np.uint8))
        for tap, values in extractor(images).items():
            truth = torch.from_numpy(recorded[f"{size}_{TAPS[tap]}"])
            worst[tap] = max(worst[tap], float((values.cpu() - truth).abs().max() / truth.abs().max()))
    return ", ".join(f"{tap} {value:.1e}" for tap, value in worst.items())


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch-fidelity", type=Path, required=True, help="a checkout of toshas/torch-fidelity")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--batch", type=int, default=32, help="of torch-fidelity; ours chooses its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="also measure ours compiled")
    return parser.parse_args()


def contestants(words: argparse.Namespace, device: torch.device) -> tuple[Pool, dict[str, InceptionExtractor]]:
    """torch-fidelity's network and ours, all with the same weights."""
    compiled = [False, True] if words.compile else [False]
    with tempfile.TemporaryDirectory() as directory:
        weights = Path(directory) / "weights.pth"
        torch.save(random_weights(), weights)
        theirs = torch_fidelity(words.torch_fidelity, weights, device)
        ours = {
            f"{precision}{' compiled' if compile else ''}": InceptionExtractor(
                weights, True, precision=precision, compile=compile, device=device
            )
            for precision in ("float32", "bfloat16")
            for compile in compiled
        }
    return theirs, ours


def main() -> None:
    words = options()
    if words.threads:
        torch.set_num_threads(words.threads)
    device = torch.device(words.device)
    theirs, ours = contestants(words, device)
    print(f"{processor()}, {torch.get_num_threads()} threads, device {device}, torch {torch.__version__}, ", end="")
    print(f"Python {platform.python_version()}")
    print(
        f"{words.images} images of {words.size}x{words.size}, {words.rounds} rounds in turns; batch {words.batch} of "
    )
    print(f"torch-fidelity, {ours['float32'].batch_size} of ours")
    pools: dict[str, Pool] = {name: (lambda x, e=extractor: e(x)["pool"]) for name, extractor in ours.items()}
    shape = (words.images, words.size, words.size, 3)
    images = torch.from_numpy(np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8))
    few, truth = images[:8], theirs(images[:8])
    differences = {name: float((pool(few) - truth).abs().max() / truth.abs().max()) for name, pool in pools.items()}

    times: dict[str, list[float]] = {name: [] for name in ["torch-fidelity", *pools]}
    for _ in range(words.rounds):
        times["torch-fidelity"].append(milliseconds(theirs, images, words.batch, device))
        for name, pool in pools.items():
            times[name].append(milliseconds(pool, images, words.images, device))
    print(f"torch-fidelity: {statistics.median(times['torch-fidelity']):.1f} ms/image")
    for name, extractor in ours.items():
        ratios = [a / b for a, b in zip(times["torch-fidelity"], times[name], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"ours, {name}: {statistics.median(times[name]):.1f} ms/image, {spread} times as fast, ", end="")
        print(f"pool features differ by {differences[name]:.1e} of the largest")
        print(f"  from the recorded float32 ones by {recorded_differences(extractor)}")
    if platform.system() == "Linux":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"peak memory of the process with all these networks: {peak:.2f} GB")


if __name__ == "__main__":
    main()
