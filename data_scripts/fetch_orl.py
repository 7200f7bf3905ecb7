"""Fetches the ORL (AT&T) Database of Faces (F. Samaria, A. Harter): 40 people x 10 images, 112 x 92 bytes."""

import sys

from reprolib.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["fetch", "orl", *sys.argv[1:]]))
