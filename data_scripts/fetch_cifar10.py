"""Fetches CIFAR-10 (A. Krizhevsky, V. Nair, G. Hinton): 50,000 + 10,000 photographs, 32 x 32 bytes, RGB."""

import sys

from reprolib.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["fetch", "cifar10", *sys.argv[1:]]))
