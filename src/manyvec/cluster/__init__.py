"""Many machines: a cluster is an index in shards, each of which any manyvec opens alone.

papers = cluster.create_local("./papers", "minilm", shards=4)
papers.add(documents)
hits = papers.search("what is late interaction")

`build`, `app` and `connect` do this on a Ray cluster, and need the extra `ray`.
"""

from manyvec.cluster.building import append_rows, encode_rows
from manyvec.cluster.local import AnyIndex, create_local, open_index, open_local, open_or_create
from manyvec.cluster.maintenance import check, reshard
from manyvec.cluster.merging import ClusterHits, ClusterInfo
from manyvec.cluster.ray.build import build
from manyvec.cluster.ray.served import connect
from manyvec.cluster.ray.serving import app
from manyvec.cluster.router import Cluster

__all__ = [
    "AnyIndex",
    "Cluster",
    "ClusterHits",
    "ClusterInfo",
    "app",
    "append_rows",
    "build",
    "check",
    "connect",
    "create_local",
    "encode_rows",
    "open_index",
    "open_local",
    "open_or_create",
    "reshard",
]
