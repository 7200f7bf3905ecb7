"""Matrix products by the faster of the two libraries that torch carries.

On processors with AVX-512 oneDNN multiplies float32 matrices in 512-bit registers, also where torch's default, MKL,
stays with 256 bits (all processors but Intel's): half the time, measured on a Zen processor. Both add in float32; they
differ in the order. Where torch is told to keep to AVX2, as the runner tells it so that runs repeat on other
processors, MKL stays. (OpenBLAS is as fast alone, but its threads spin while those of torch work, and it loses.)
"""

from __future__ import annotations

import torch
from torch import Tensor

# The operation that torch's compiler emits for a linear layer; no public function reaches oneDNN with plain tensors.
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
)


def add_product(out: Tensor, a: Tensor, b: Tensor, beta: float = 1.0) -> None:
    """``out`` (M, N) becomes beta out + a b^T, with a (M, K) and b (N, K); at beta = 0 it need not be initialised."""
    if ONEDNN and out.device.type == "cpu" and out.dtype == torch.float32:
        product = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        if beta == 0.0:
            out.copy_(product)
        else:
            out.mul_(beta).add_(product) if beta != 1.0 else out.add_(product)
    else:
        torch.addmm(out, a, b.t(), beta=beta, out=out)
