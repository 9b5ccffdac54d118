"""A lack of memory: which errors tell of one, and the error where even one row finds too little."""

from __future__ import annotations

import re

SAID = (
    "out of memory",  # CUDA, HIP, XPU, MPS
    "_STATUS_ALLOC_FAILED",  # cuBLAS and its kin, which say no more
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # of other calls: errors before
    "CUDNN_STATUS_NOT_SUPPORTED",  # cuDNN, where no workspace fits
    "was unable to find an engine",  # the same, of its newer interface
    "NVML_SUCCESS == r",  # CUDA, where it cannot say what is free
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",  # XPU
    "Invalid buffer size",  # MPS
    "DefaultCPUAllocator: can't allocate",
    "DefaultCPUAllocator: not enough",  # on Windows
    "PT_DEVMEM Allocation failed",  # HPU
)
"""By what a RuntimeError is known. accelerate's list lacks cuBLAS, and takes torch to read."""


class NotEnoughMemoryError(MemoryError):
    """There is too little memory for one row: fewer cannot be tried. The message is a sentence."""


def lacks_memory(error: BaseException) -> bool:
    """Whether an error tells of a lack of memory, on whatever device, so that fewer rows may
    fit."""
    # torch's, without torch
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in SAID)


def shortage(error: BaseException) -> str:
    """What was needed and what is free, as far as an error tells; else its first line."""
    said = str(error)
    needed = re.search(r"allocate ([\d.]+ ?\w+)", said)
    free = re.search(r"of which ([\d.]+ ?\w+) is free", said)
    if needed is None:
        return said.strip().partition("\n")[0]
    return f"{needed[1]} needed" + ("" if free is None else f", {free[1]} free")
