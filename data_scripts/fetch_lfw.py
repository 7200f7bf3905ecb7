"""Fetches LFW (G. Huang et al.): 13,233 faces of 5,749 people, aligned to 112 x 112, and the 6,000 pairs of View 2."""

import sys

from reprolib.data.datasets import fetch_command

if __name__ == "__main__":
    sys.exit(fetch_command("lfw", __doc__))
