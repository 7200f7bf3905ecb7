"""The two ways of a product, and the sparse products, against float64."""

from __future__ import annotations

import math

import pytest
import torch

from reprolib.losses import ArcFace, products, sparse


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def library(request, monkeypatch):
    if request.param and not products.ONEDNN:
        pytest.skip("this torch has no oneDNN beside MKL")
    monkeypatch.setattr(products, "ONEDNN", request.param)


@pytest.mark.parametrize("shape", [(2048, 128, 64), (33, 7, 300), (1, 5, 1), (6, 1, 2)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_a_product_is_written_or_added(library, dtype, tolerance, shape):
    m, n, k = shape
    generator = torch.Generator().manual_seed(0)
    a, b, there = (torch.randn(*s, generator=generator, dtype=dtype) for s in ((m, k), (n, k), (m, n)))
    exact = (a.double()[:, None, :] * b.double()).sum(dim=2)
    # rows, columns and views of a larger tensor, as the head has them
    for left, right in ((a, b), (a.t().contiguous().t(), b.t().contiguous().t())):
        out = torch.full((m + 2, n), math.nan, dtype=dtype)
        products.put_product(out[1:-1], left, right, add=False)
        assert float((out[1:-1] - exact).abs().max()) < tolerance * math.sqrt(k) * 4
        assert out[0].isnan().all() and out[-1].isnan().all()
        out[1:-1] = there
        products.put_product(out[1:-1], left, right, add=True)
        assert float((out[1:-1] - (exact + there)).abs().max()) < tolerance * math.sqrt(k) * 4


def test_the_heads_of_both_libraries_agree(monkeypatch):
    torch.manual_seed(0)
    head, x, y = ArcFace(24, 70, chunk_bytes=4 * 70 * 9), torch.randn(31, 24, requires_grad=True), torch.arange(31)
    found = []
    for one in (products.ONEDNN, False):
        monkeypatch.setattr(products, "ONEDNN", one)
        found.append(torch.autograd.grad(head(x, y), [x, head.weight]))
    for mine, theirs in zip(*found, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-5


def test_float32_products_take_onednn_where_it_is(monkeypatch):
    calls = []

    class Operations:
        @staticmethod
        def _linear_pointwise(a, b, *rest):
            calls.append(a.dtype)
            return a @ b.t()

    monkeypatch.setattr(products, "ONEDNN", True)
    monkeypatch.setattr(products.torch.ops, "mkldnn", Operations)
    for dtype, device in ((torch.float32, "cpu"), (torch.float64, "cpu"), (torch.float32, "meta")):
        a, b, out = (torch.ones(3, 3, dtype=dtype, device=device) for _ in range(3))
        products.put_product(out, a, b, add=False)
    assert calls == [torch.float32]


@pytest.mark.parametrize("with_weight, normalised", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.4])
def test_kept_elements_make_the_products_of_a_matrix_with_zeros(share, with_weight, normalised, monkeypatch):
    monkeypatch.setattr(sparse, "BLOCK", 7)
    generator = torch.Generator().manual_seed(1)
    e = torch.rand(60, 9, generator=generator, dtype=torch.float64)
    w, xs, before = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (60, 9, 60))
    inverse = torch.rand(60, generator=generator, dtype=torch.float64) + 0.5 if normalised else None
    # each sample has its bound, which rises to its last value while blocks of classes come in
    last = 1.0 - share * torch.linspace(0.5, 1.0, 9, dtype=torch.float64)
    kept = sparse.Kept()
    found = sum(kept.add(e[k : k + 25], k, last * (0.8 + 0.1 * (k // 25))) for k in (0, 25, 50))
    early = torch.tensor([0.8, 0.9, 1.0], dtype=torch.float64).repeat_interleave(25)[:60, None]
    assert found == int((e >= last * early).sum())
    q = torch.where(e >= last, e, 0.0) * (1.0 if inverse is None else inverse[:, None])
    grad_w = before.clone() if with_weight else None
    on_x = kept.products(last, w.requires_grad_(), inverse, xs, grad_w)
    assert torch.allclose(on_x, q.t() @ w, rtol=1e-12, atol=1e-12) and not on_x.requires_grad
    if grad_w is not None:
        assert torch.allclose(grad_w, before + q @ xs, rtol=1e-12, atol=1e-12)
