"""Fetches LFW (G. Huang et al.): 13,233 faces of 5,749 people, aligned to 112 x 112, and the 6,000 pairs of View 2."""

import sys

from reprolib.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["fetch", "lfw", *sys.argv[1:]]))
