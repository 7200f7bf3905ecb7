"""Environment variables that make numerical libraries choose the same kernels on every x86-64 processor with AVX2.

torch, oneDNN, MKL and OpenBLAS pick their kernels by the processor that they find, and kernels for wider registers add
in another order. The variables are read when a library is loaded, so they are set where a run starts: for the kernels
of the runner (their workers inherit them) and for the tests. Importing the library sets nothing.
"""

from __future__ import annotations

import platform
from pathlib import Path

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
