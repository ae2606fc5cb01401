"""Stored statistics of features, as OpenAI's reference batches have them: `mu`, `sigma`, `mu_s`, `sigma_s`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adm.data._member import MemberReader
from adm.data._npy import Header, read_header, read_values
from adm.data._npz import STATISTICS, arrays_in, is_array_file
from adm.data._open_file import OpenFile
from adm.runtime.errors import DataError
from adm.runtime.text import one_line, shown_path

__all__ = ["stored_statistics"]

MAX_DIMENSIONS = 4096
"""sigma then takes 134 MB."""
MAX_MAGNITUDE = 1e30
SYMMETRIC_WITHIN = 1e-5
"""Of the largest entry: float32 covariances keep it."""


def stored_statistics(path: str | Path) -> dict[str, NDArray[np.float64]] | None:
    """The `mu`, `sigma` and, where there are any, `mu_s`, `sigma_s` of an .npz; None if it stores none.

    float64, (D,) and (D, D), finite, sigma symmetric within rounding. Raises DataError or DamagedError.
    """
    path = Path(path)
    if path.is_dir():
        return None
    with OpenFile(path) as file:
        if not is_array_file(file):
            return None
        listed = arrays_in(file)
        readers = {name: MemberReader(file, listed[name]) for name in STATISTICS if name in listed}
        headers = {name: _checked(file, name, read_header(reader)) for name, reader in readers.items()}
        _check_pairs(path, headers)
        return {name: _values(file, name, reader, headers[name]) for name, reader in readers.items()} or None


def _checked(file: OpenFile, name: str, header: Header) -> Header:
    where = f"{shown_path(file.path)}: {name} is {header.dtype} {one_line(header.shape, 60)}"
    if header.dtype.kind != "f" or header.dtype.itemsize not in (4, 8):
        raise DataError(f"{where}, expected float32 or float64: make the statistics again")
    axes = 1 if name.startswith("mu") else 2
    if len(header.shape) != axes or len(set(header.shape)) != 1 or not 1 <= header.shape[0] <= MAX_DIMENSIONS:
        wanted = "(D,)" if axes == 1 else "(D, D)"
        raise DataError(f"{where}, expected {wanted} with D from 1 to {MAX_DIMENSIONS}: make the statistics again")
    return header


def _check_pairs(path: Path, headers: dict[str, Header]) -> None:
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if (mean in headers) != (covariance in headers):
            there, missing = (mean, covariance) if mean in headers else (covariance, mean)
            raise DataError(f"{shown_path(path)} stores {there} without {missing}: make it again, or leave both out")
        if mean in headers and headers[covariance].shape != 2 * headers[mean].shape:
            shapes = f"{mean} {headers[mean].shape} and {covariance} {headers[covariance].shape}"
            raise DataError(f"{shown_path(path)} stores {shapes}, which do not belong together: make it again")
    if headers and "mu" not in headers:
        raise DataError(f"{shown_path(path)} stores mu_s without mu: make it again, or leave both out")


def _values(file: OpenFile, name: str, reader: MemberReader, header: Header) -> NDArray[np.float64]:
    values = read_values(reader, header).astype(np.float64, copy=False)
    where = f"{shown_path(file.path)}: {name}"
    if not max(-float(values.min()), float(values.max())) < MAX_MAGNITUDE:  # also false for NaN
        raise DataError(f"{where} holds NaN, infinity or numbers of no sense: make the statistics again")
    if values.ndim == 2 and not _is_covariance(values):
        raise DataError(f"{where} is no covariance (not symmetric, or negative variances): make the statistics again")
    return values


def _is_covariance(values: NDArray[np.float64]) -> bool:
    slack = SYMMETRIC_WITHIN * max(-float(values.min()), float(values.max()))
    rows = range(0, len(values), 256)
    if any(np.abs(values[k : k + 256] - values[:, k : k + 256].T).max() > slack for k in rows):
        return False
    return bool(values.diagonal().min() >= -slack)
