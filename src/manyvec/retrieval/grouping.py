"""At most a few hits of each group, such as passages of one file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from manyvec.types import Hit

# Hits that are looked at first for each one that is wanted, and how many times more the next time.
_FACTOR = 4


def search_grouped(find: Callable[[int], list[list[Hit]]], k: int, group_by: str, group_size: int) -> list[list[Hit]]:
    """Return the best `k` hits of each query with at most `group_size` hits of any group.

    Args:
        find: Returns the best n hits of each query. Called with growing n until enough groups are found.
        k: Maximum number of hits.
        group_by: Metadata key; hits with equal values form a group. A hit without the key is a group of its own.
        group_size: Maximum number of hits of a group.
    """
    n = _FACTOR * k
    while True:
        found = find(n)
        grouped = [_grouped(hits, k, group_by, group_size) for hits in found]
        if all(len(kept) == k or len(hits) < n for kept, hits in zip(grouped, found, strict=True)):
            return grouped
        n *= _FACTOR


def _grouped(hits: Sequence[Hit], k: int, group_by: str, group_size: int) -> list[Hit]:
    n_of_group: Counter[str] = Counter()
    kept: list[Hit] = []
    for hit in hits:
        if len(kept) == k:
            break
        if (value := hit.metadata.get(group_by)) is not None:
            group = json.dumps(value, sort_keys=True)
            n_of_group[group] += 1
            if n_of_group[group] > group_size:
                continue
        kept.append(replace(hit, rank=len(kept) + 1))
    return kept
