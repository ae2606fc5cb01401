"""Improved precision and recall: fidelity and coverage as two numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from adm.metrics._distances import kth_neighbour, slack, squared_distances
from adm.metrics._features import Features, require_same_extractor
from adm.runtime.errors import UsageError

__all__ = ["PrecisionRecall"]


class PrecisionRecall:
    """{"precision": share of samples on the references' manifold, "recall": of references on the samples'}.

    A manifold is the union of balls around its points, each as wide as the distance to the k-th nearest other
    point of the same set; a point on the rim is inside. Distances in float64. Both numbers depend on k and on
    the two sizes, so compare only equal ones. ``tile``: rows per matrix product, which bounds the memory and
    changes nothing. Raises UsageError when a side has no k other points. Source: Kynkaanniemi et al. 2019,
    Eqs. 1-2 and Alg. 1.
    """

    def __init__(self, k: int = 3, tile: int = 4096) -> None:
        if k < 1 or tile < 1:
            raise UsageError(f"k={k}, tile={tile}: both must be at least 1")
        self.k = k
        self.tile = tile

    def __call__(self, sample: Features, reference: Features) -> dict[str, float]:
        require_same_extractor(sample, reference)
        for side in (sample, reference):
            if len(side) <= self.k:
                raise UsageError(f"{len(side)} images have no {self.k} neighbours each: give more, or a smaller k")
        sample_radii = kth_neighbour(sample.values, self.k, self.tile)
        reference_radii = kth_neighbour(reference.values, self.k, self.tile)
        covered_sample, covered_reference = _inside(
            sample.values, reference.values, sample_radii, reference_radii, self.tile
        )
        return {
            "precision": float(covered_sample.double().mean()),
            "recall": float(covered_reference.double().mean()),
        }


def _inside(
    sample: Tensor, reference: Tensor, sample_radii: Tensor, reference_radii: Tensor, tile: int
) -> tuple[Tensor, Tensor]:
    """Which samples lie in a ball of the reference, and which references in a ball of the samples."""
    tie = slack(sample, reference)
    in_reference = torch.zeros(len(sample_radii), dtype=torch.bool, device=sample_radii.device)
    in_sample = torch.zeros(len(reference_radii), dtype=torch.bool, device=sample_radii.device)
    for rows, columns, distances in squared_distances(sample, reference, tile):
        in_reference[rows] |= (distances <= reference_radii[columns] + tie).any(dim=1)
        in_sample[columns] |= (distances <= sample_radii[rows, None] + tie).any(dim=0)
    return in_reference, in_sample
