"""Fetches Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf): 60,000 + 10,000 clothes, 28 x 28 bytes."""

import sys

from reprolib.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["fetch", "fashion_mnist", *sys.argv[1:]]))
