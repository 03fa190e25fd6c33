"""The benchmarks' first stages: fusion of several, and LanceDB's own multivector search."""

import numpy as np
import pytest

from manyvec import F, Index, InputError
from manyvec.candidates import CentroidLists, Exhaustive, Lexical, Query, Scope
from manyvec.testing import HashEncoder

WORDS = [f"w{i}" for i in range(400)]


def filled(uri, storage):
    rng = np.random.default_rng(0)
    index = Index.create(uri, HashEncoder(48), storage=storage, filter_columns={"n": int})
    texts = [" ".join(rng.choice(WORDS, 30)) for _ in range(60)]
    index.add({"id": f"{i:04d}", "text": text, "metadata": {"n": i}} for i, text in enumerate(texts))
    return index, " ".join(texts[7].split()[:6])


def test_stages_can_be_fused_and_compared_with_lancedbs_own(tmp_path, stages):
    index, query = filled(tmp_path / "index", "float16")
    native, fuse = stages.NativeMultivector(), stages.Fuse
    best = [hit.id for hit in index.search(query, k=60)]
    assert index.rank([query], native, 60)[0][:3] == best[:3]
    (some,) = index.rank([query], native, 5, filter=F("n") < 20)
    assert some and all(id < "0020" for id in some)
    (fused,) = index.rank([query], fuse((Lexical(), native)), 10)
    assert fused[0] == "0007" and len(fused) == len({*fused}) == 10
    (all_of_them,) = index.rank([query], fuse((Lexical(), Exhaustive())), 10)
    assert len(all_of_them) == 60
    (without_lists,) = index.rank([query], CentroidLists(), 10)
    assert len(without_lists) == 60
    index.candidates = fuse((Lexical(), native))
    assert index.search(query, k=1)[0].id == "0007"


def test_reciprocal_ranks_by_hand(stages):
    class Ranked:
        def __init__(self, *positions):
            self.positions = np.array(positions, np.int64)

        def find(self, query, scope, depth):
            return self.positions

    # 5: 1/61 + 1/63, 3: 1/62 + 1/61, 9: 1/63, 1: 1/62.
    fused = stages.Fuse((Ranked(5, 3, 9), Ranked(3, 1, 5))).find(Query("", np.empty((0, 4))), Scope(None, None), 10)
    assert fused.tolist() == [3, 5, 1, 9]


def test_lancedbs_own_search_needs_float16(tmp_path, stages):
    index, query = filled(tmp_path / "index", "int8")
    with pytest.raises(InputError, match="LanceDB searches float16 token vectors"):
        index.rank([query], stages.NativeMultivector())
