"""Matrix products by the faster of the two libraries that torch carries on x86-64.

oneDNN multiplies float32 matrices in the widest registers of the processor; MKL, torch's default, does so on Intel's
only. On a Zen processor with AVX-512 a product takes half the time, and 0.45 of it where the runner asks for kernels
that give the same bits everywhere (MKL then stays with 128 bits; oneDNN's AVX2 kernels give the same bits on an
emulated Haswell, and for any number of threads). Both add in float32, in different orders.

OpenBLAS is as fast alone, but its threads spin while those of torch work: in a training step it loses.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The operation that torch's compiler emits for a linear layer; no public function reaches oneDNN with plain tensors.
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and torch.backends.mkl.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def put_product(out: Tensor, a: Tensor, b: Tensor, add: bool) -> None:
    """a b^T is written into ``out`` (M, N), or added to what is there; a (M, K), b (N, K)."""
    if ONEDNN and out.device.type == "cpu" and out.dtype == torch.float32:
        product = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        out.add_(product) if add else out.copy_(product)
    else:
        torch.addmm(out, a, b.t(), beta=float(add), out=out)
