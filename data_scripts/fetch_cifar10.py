"""Fetches CIFAR-10 (A. Krizhevsky, V. Nair, G. Hinton): 50,000 + 10,000 photographs, 32 x 32 bytes, RGB."""

import sys

from reprolib.data.datasets import fetch_command

if __name__ == "__main__":
    sys.exit(fetch_command("cifar10", __doc__))
