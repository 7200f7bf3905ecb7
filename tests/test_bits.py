"""The same bits on another processor: a short training natively and under an emulated Haswell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from reprolib._arithmetic import same_kernels

# Five steps of ArcFace on random images, network and head; prints a hash of all weights.
TRAINING = """
import hashlib, torch
from reprolib import losses, models
torch.set_num_threads(1)
torch.manual_seed(0)
network, head = models.compact(16, (1, 14, 42)), losses.ArcFace(16, 40, margin=0.5, scale=32.0)
images, labels = torch.randn(64, 1, 14, 42), torch.randint(40, (64,))
optimiser = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.1, momentum=0.9, weight_decay=5e-4)
for _ in range(5):
    optimiser.zero_grad()
    head(network(images), labels).backward()
    optimiser.step()
digest = hashlib.sha256()
for parameter in (*network.parameters(), *head.parameters()):
    digest.update(parameter.detach().numpy().tobytes())
print(torch.backends.cpu.get_cpu_capability(), digest.hexdigest())
"""
QEMU = shutil.which("qemu-x86_64")


def trained(*emulator: str) -> list[str]:
    done = subprocess.run(
        [*emulator, sys.executable, "-c", TRAINING],
        env=os.environ | same_kernels(),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.timeout(2000)
@pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 (Debian's qemu-user) is not installed")
@pytest.mark.skipif(not same_kernels(), reason="this processor has no AVX2")
def test_a_short_training_ends_in_the_same_weights_on_an_emulated_haswell():
    assert QEMU is not None
    native = trained()
    assert native[0] == "AVX2"
    assert trained(QEMU, "-cpu", "Haswell") == native
