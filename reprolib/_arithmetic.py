"""Environment variables that make numerical libraries choose the same kernels on every x86-64 processor with AVX2.

torch, oneDNN, MKL and OpenBLAS pick their kernels by the processor that they find, and kernels for wider registers add
in another order. The variables are read when a library is loaded, so they are set where a run starts: for the tests,
and, where REPROLIB_SAME_BITS=1 or `run --same-bits` asks for it, for the kernels of the runner (their workers inherit
them). A processor with AVX-512 then takes a sixth longer to train. Importing the library sets nothing.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

SAME_BITS = "REPROLIB_SAME_BITS"
SAME_KERNELS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Haswell",
}


def same_kernels(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """`SAME_KERNELS` on Linux with an x86-64 processor that has AVX2 and FMA, else nothing: it would not run them."""
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        return {}
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split()
    return dict(SAME_KERNELS) if {"avx2", "fma"} <= set(flags) else {}


def asked_kernels() -> dict[str, str]:
    """`same_kernels()` where the environment asks for them, else nothing. Raises ValueError for another value."""
    asked = os.environ.get(SAME_BITS, "")
    if asked not in ("", "0", "1"):
        raise ValueError(f"{SAME_BITS} must be 0 or 1, got {asked!r}")
    return same_kernels() if asked == "1" else {}
