"""What `Index.optimize` does beside LanceDB's own compaction: codes for `residual` storage, and centroid lists."""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from manyvec.errors import WriteConflictError
from manyvec.storage.snapshot import BUILD_WINDOW_BYTES, Snapshot, windows
from manyvec.storage.states import RowStates
from manyvec.storage.table import Store
from manyvec.vectors.codebook import Assignments, Codebook, n_centroids_for

# `residual` storage gets its centroids once the index holds this many token vectors; until then it stores float16.
MIN_RESIDUAL_TOKENS = 65_536
_ROWS_PER_STATEMENT = 10_000


def optimize(store: Store, keep: timedelta, *, lists_above: int | None, show_progress: bool = False) -> None:
    """Do what `Index.optimize` says.

    Args:
        store: The index.
        keep: How long replaced and deleted data stays on disk.
        lists_above: Token vectors above which the index gets centroid lists; None for no lists.
        show_progress: Whether to draw bars.

    Raises:
        WriteConflictError: Other writers left no gap in which files could be merged; all the rest was done.
    """
    conflict: WriteConflictError | None = None
    with store.optimizing() as is_alone:
        encode_residuals(store, show_progress=show_progress)
        remove_duplicates(store)
        try:
            store.optimize(keep, removes_leftovers=is_alone and not keep)
        except WriteConflictError as error:
            conflict = error
        # The lists do not depend on merged files, and searches need them more.
        if lists_above is not None:
            extend_lists(store, more_than=lists_above, keep=keep, show_progress=show_progress)
    if conflict is not None:
        raise conflict


def remove_duplicates(store: Store) -> list[str]:
    """Delete all but the newest row of each id, and return the ids that had more than one.

    Rows that another program appends, for example with lance-ray, are not compared with those that exist.
    """
    states = store.snapshot().states()
    # Ids together, the newest row of each last.
    order = np.lexsort((states.row_ids, states.updated, states.ids.astype(str)))
    ids = states.ids[order]
    is_older = ids[:-1] == ids[1:]
    if not is_older.any():
        return []
    older = states.row_ids[order[:-1][is_older]].tolist()
    for start in range(0, len(older), _ROWS_PER_STATEMENT):
        store.delete(f"_rowid IN ({', '.join(map(str, older[start : start + _ROWS_PER_STATEMENT]))})")
    return sorted({*ids[:-1][is_older].tolist()})


def train_codebook(snapshot: Snapshot, states: RowStates, n_centroids: int) -> Codebook:
    """Train a codebook on about 8 token vectors per centroid.

    They are drawn from documents that hold four times as many: neighbouring vectors of few documents are too similar.
    """
    rng = np.random.default_rng(0)
    order = rng.permutation(len(states.row_ids))
    n_drawn = max(65_536, 8 * n_centroids)
    n_documents = int(np.searchsorted(np.cumsum(states.n_tokens[order]), 4 * n_drawn)) + 1
    documents = np.sort(order[:n_documents])
    share = min(1.0, n_drawn / max(1, int(states.n_tokens[documents].sum())))
    parts = []
    for window in windows(snapshot.token_bytes(states, documents), BUILD_WINDOW_BYTES):
        vectors = snapshot.tokens(states.row_ids[documents[window]]).vectors
        parts.append(vectors[np.sort(rng.choice(len(vectors), max(1, round(share * len(vectors))), replace=False))])
    return Codebook.train(np.concatenate(parts), n_centroids)


def encode_residuals(
    store: Store,
    *,
    show_progress: bool = False,
    min_tokens: int = MIN_RESIDUAL_TOKENS,
    window_bytes: int = BUILD_WINDOW_BYTES,
) -> None:
    """Encode token vectors that `residual` storage still holds as float16. Other storages are left alone.

    If interrupted, the rest stays float16 and is searched as such; the next call goes on.

    Args:
        store: The index.
        show_progress: Whether to draw a bar with documents per second.
        min_tokens: Token vectors that the index must hold before centroids are trained.
        window_bytes: Bytes of token vectors per commit.
    """
    if store.manifest.storage != "residual":
        return
    from tqdm.auto import tqdm

    snapshot = store.snapshot()
    states = snapshot.states()
    pending = np.flatnonzero(~states.is_coded)
    n_tokens = int(states.n_tokens.sum())
    if store.centroids.codec() is None and n_tokens >= min_tokens:
        codebook = train_codebook(snapshot, states, n_centroids_for(n_tokens))
        with store.turn():
            store.centroids.set_codec(codebook)
    if store.centroids.codec() is None or not len(pending):
        return
    with tqdm(total=len(pending), unit=" documents", desc="codes", disable=not show_progress) as bar:
        for window in windows(snapshot.token_bytes(states, pending), window_bytes):
            rows = pending[window]
            ids = states.ids[rows].tolist()
            stored = snapshot.find(ids)
            tokens = snapshot.uncoded_tokens(states.row_ids[rows], spans=True)
            # Damaged documents have no vectors here; their rows stay as they are.
            whole = np.flatnonzero(tokens.lengths)
            ids = [ids[position] for position in whole]
            store.recode(ids, [stored[id].content_hash for id in ids], tokens.select(whole))
            bar.update(len(rows))


def extend_lists(
    store: Store,
    *,
    more_than: int,
    keep: timedelta = timedelta(days=7),
    show_progress: bool = False,
    window_bytes: int = BUILD_WINDOW_BYTES,
) -> None:
    """Assign documents that have no centroids yet; train a new codebook if the index has outgrown the old one.

    A new codebook is used only once it is complete: if interrupted, the old one stays in use.

    Args:
        store: The index.
        more_than: Indexes with at most this many token vectors get no lists.
        keep: How long replaced assignments stay on disk.
        show_progress: Whether to draw a bar with documents per second.
        window_bytes: Bytes of token vectors per commit.
    """
    from tqdm.auto import tqdm

    snapshot = store.snapshot()
    states = snapshot.states()
    n_tokens = int(states.n_tokens.sum())
    if n_tokens <= more_than:
        return
    assigned = snapshot.assignments()
    if assigned is None or n_centroids_for(n_tokens) >= 2 * len(assigned.codebook):
        codebook = train_codebook(snapshot, states, n_centroids_for(n_tokens))
        missing = np.arange(len(states.row_ids))
        store.centroids.start_assignments(codebook)
    else:
        codebook, positions = assigned.codebook, assigned.positions_in(states.row_ids, states.updated)
        missing = np.setdiff1d(np.arange(len(states.row_ids)), positions)
        covered = np.flatnonzero(positions >= 0)
        n_stored = int(snapshot.assignments_key.split()[1])
        if len(missing) and n_stored > 2 * len(covered):
            # Most are of rows that have been changed or deleted since.
            store.centroids.replace_assignments(assigned.select(covered))
    with tqdm(total=len(missing), unit=" documents", desc="centroids", disable=not show_progress) as bar:
        for window in windows(snapshot.token_bytes(states, missing), window_bytes):
            rows = missing[window]
            tokens = snapshot.tokens(states.row_ids[rows])
            store.centroids.add_assignments(
                Assignments.of(codebook, states.row_ids[rows], states.updated[rows], tokens)
            )
            bar.update(len(rows))
    if len(missing):
        with store.turn():
            store.centroids.set_assignments(codebook)
            store.centroids.optimize_assignments(codebook, keep)
