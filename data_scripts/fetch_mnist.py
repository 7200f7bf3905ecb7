"""Fetches MNIST (Y. LeCun, C. Cortes, C. J. C. Burges): 60,000 + 10,000 handwritten digits, 28 x 28 bytes."""

import sys

from reprolib.data.datasets import fetch_command

if __name__ == "__main__":
    sys.exit(fetch_command("mnist", __doc__))
