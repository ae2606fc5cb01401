"""What can go wrong for a user, and the exit code that says so.

Each message is one line: what failed, where, why, and what to do. The command line prints it after ``adm: `` and
exits with ``exit_code``; as a library the exceptions are ordinary ones. The core rooms (diffusion, nn, guidance,
sampling) know none of these: they raise ``ValueError``, which the command line reports as a usage error.
"""

__all__ = [
    "AdmError",
    "DamagedError",
    "DataError",
    "DivergedError",
    "PeerLostError",
    "ResourceError",
    "StoppedError",
    "UsageError",
    "is_out_of_memory",
]


class AdmError(Exception):
    """Anything that a user can mend."""

    exit_code = 1


class UsageError(AdmError):
    """A flag, name or combination that cannot work."""

    exit_code = 2


class DataError(AdmError):
    """Input data that cannot be used."""

    exit_code = 3


class DamagedError(AdmError):
    """A damaged or foreign file that was refused."""

    exit_code = 4


class ResourceError(AdmError):
    """Disk or memory ran out."""

    exit_code = 5


class DivergedError(AdmError):
    """A loss, gradient, weight or image is no longer finite."""

    exit_code = 6


class PeerLostError(AdmError):
    """Another process of the same job is gone."""

    exit_code = 7


class StoppedError(AdmError):
    """Stopped on request; the same command continues."""

    exit_code = 75


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's, CUDA's, torch's on the CPU, which is a RuntimeError, or the loader's of a library."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, ImportError):  # a limit of the address space (ulimit -v) below what torch takes
        return "failed to map segment" in str(error)
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
