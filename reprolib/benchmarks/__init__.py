"""`python -m reprolib bench [NAME ...]`: measurements that are too long, or too much of a race, for a test."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from .evaluation import rank1, tar
from .toy import toy

BENCHES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"toy": toy, "tar": tar, "rank1": rank1}
