"""`python -m reprolib bench [NAME ...]`: measurements that are too long, or too much of a race, for a test.

Each bench takes the parsed arguments and returns what is written as JSON; its table goes to standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from reprolib.benchmarks.evaluation import rank1, tar
from reprolib.benchmarks.heads import cost, heads, million
from reprolib.benchmarks.miners import miners
from reprolib.benchmarks.partial_fc import partial_fc
from reprolib.benchmarks.popular import popular
from reprolib.benchmarks.toy import toy

BENCHES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "toy": toy,
    "heads": heads,
    "million": million,
    "cost": cost,
    "miners": miners,
    "popular": popular,
    "tar": tar,
    "rank1": rank1,
    "partial_fc": partial_fc,
}
