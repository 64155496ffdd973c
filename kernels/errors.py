"""Every error that the kernels raise on purpose: one sentence that says what is wrong and what to do."""

from __future__ import annotations


class KernelError(Exception):
    """Base class of all errors of this package."""


class KernelInputError(KernelError, ValueError):
    """A tensor, option or file name that no kernel accepts."""


class KernelUnavailableError(KernelError, ImportError):
    """Triton or PyTorch is not installed, or an architecture has no such kernel."""


class KernelCompileError(KernelError, RuntimeError):
    """Triton or ptxas refused a kernel."""


class KernelOutputError(KernelError, OSError):
    """A compiled kernel or the manifest could not be written; nothing half-written is left."""
