"""Fetches MNIST (Y. LeCun, C. Cortes, C. J. C. Burges): 60,000 + 10,000 handwritten digits, 28 x 28 bytes."""

import sys

from reprolib.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["fetch", "mnist", *sys.argv[1:]]))
