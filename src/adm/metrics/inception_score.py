"""Inception Score: are the classes read clearly, and all of them?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adm.metrics._features import Features, _float64
from adm.runtime.errors import UsageError

__all__ = ["InceptionScore"]


class InceptionScore:
    """{"inception_score": mean over splits of exp E_x KL(p(y|x) || p(y))}; 1 to the number of classes, more is better.

    Reads the samples' logits (N, classes), for published numbers those of the 2015 Inception without their bias; the
    reference plays no part. Splits are ``split_size`` samples in their order; a short last one counts as much as the
    others, as in OpenAI's evaluator: 50,001 samples have an eleventh split of one image, which scores 1. In float64
    from the logits on, so that no probability becomes 0. Source: Salimans et al. 2016, section 4.
    """

    tap = "logits"
    extractor = None
    accepts_statistics = False
    needs_reference = False

    def __init__(self, split_size: int = 5000) -> None:
        if split_size < 1:
            raise UsageError(f"split_size={split_size}: must be at least 1")
        self.split_size = split_size

    def __call__(self, sample: Features, reference: Features | None = None) -> dict[str, float]:
        splits = [_sums(split)[0] for split in sample.values.split(self.split_size)]
        return {"inception_score": _mean_score(splits)}

    def leave_one_out(self, sample: Features, reference: object, blocks: Sequence[Tensor]) -> list[dict[str, float]]:
        """The scores without the samples of each block (index tensors); every other sample stays in its split."""
        block = torch.empty(len(sample), dtype=torch.int64)
        for number, rows in enumerate(blocks):
            block[rows] = number
        splits = [
            _sums(split, of, len(blocks))
            for split, of in zip(sample.values.split(self.split_size), block.split(self.split_size), strict=True)
        ]
        totals = [split.sum(0) for split in splits]
        return [
            {"inception_score": _mean_score([t - s[i] for t, s in zip(totals, splits, strict=True)])}
            for i in range(len(blocks))
        ]


def _sums(logits: Tensor, block: Tensor | None = None, num_blocks: int = 1) -> Tensor:
    """Of each block in one row: sums of p (classes), of p log p, and the number of samples."""
    log_p = torch.log_softmax(_float64(logits), dim=1)
    p = log_p.exp()
    columns = torch.cat([p, (p * log_p).sum(1, keepdim=True), torch.ones_like(p[:, :1])], dim=1)
    if block is None:
        return columns.sum(0, keepdim=True)
    return columns.new_zeros(num_blocks, columns.shape[1]).index_add_(0, block.to(columns.device), columns)


def _mean_score(splits: Sequence[Tensor]) -> float:
    """E KL(p || q) is E sum p log p - sum q log q with q = E p."""
    scores = []
    for sums in splits:
        n = sums[-1]
        if n > 0:
            q = sums[:-2].clamp(min=0) / n
            scores.append((sums[-2] / n - torch.special.xlogy(q, q).sum()).exp())
    return float(torch.stack(scores).mean())
