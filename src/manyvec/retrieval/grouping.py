"""At most a few hits of each group, such as passages of one file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from manyvec.errors import check_count
from manyvec.retrieval.search import SearchOptions
from manyvec.types import Hit

# Hits that are looked at first for each one that is wanted, and how many times more the next time.
_FACTOR = 4


def search_grouped(
    find: Callable[[SearchOptions], list[list[Hit]]], options: SearchOptions, group_by: str, group_size: int
) -> list[list[Hit]]:
    """Return the best hits of each query with at most `group_size` hits of any group.

    Args:
        find: Returns the best hits of each query. Called with growing `k` until enough groups are found.
        options: Options of the search; `k` is the maximum number of hits after grouping.
        group_by: Metadata key; hits with equal values form a group. A hit without the key is a group of its own.
        group_size: Maximum number of hits of a group.

    Raises:
        InputError: `group_size` is not a positive integer.
    """
    group_size = check_count(group_size, "group_size", minimum=1)
    n = _FACTOR * options.k
    while True:
        found = find(replace(options, k=n))
        grouped = [_grouped(hits, options.k, group_by, group_size) for hits in found]
        if all(len(kept) == options.k or len(hits) < n for kept, hits in zip(grouped, found, strict=True)):
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
