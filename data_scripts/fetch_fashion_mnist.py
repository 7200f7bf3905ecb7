"""Fetches Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf): 60,000 + 10,000 clothes, 28 x 28 bytes."""

import sys

from reprolib.data.datasets import fetch_command

if __name__ == "__main__":
    sys.exit(fetch_command("fashion_mnist", __doc__))
