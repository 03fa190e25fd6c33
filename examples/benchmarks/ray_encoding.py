"""How fast two actors of Ray encode documents into a cluster, against one process that adds the same documents.

python examples/benchmarks/ray_encoding.py

Two nodes of one CPU run on this machine, so both contenders have the same two cores: the process lets torch use two
threads, each actor one. Ray's time is also given without that of a build of one document, in which actors start and
load the model.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import report

from manyvec import Index, cluster

N_DOCUMENTS, N_WORDS = 2000, 60
DRAW = random.Random(7)
WORDS = "late interaction scores every word of a query against the words of documents in an index of vectors".split()


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    documents = [{"id": f"d{i}", "text": " ".join(DRAW.choices(WORDS, k=N_WORDS))} for i in range(N_DOCUMENTS)]
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, Any] = {"documents": N_DOCUMENTS, "words": N_WORDS * N_DOCUMENTS}
        results["one process"] = _alone(Path(folder) / "before", documents)
        machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            machines.add_node(num_cpus=1)
            ray.init(address=machines.address, log_to_driver=False, logging_level="error")
            # The first build waits for Ray to start workers, which import torch.
            for name, n_built in (("the first document", 1), ("all documents", N_DOCUMENTS), ("one document", 1)):
                started = time.perf_counter()
                place = Path(folder) / name
                cluster.build(place, documents[:n_built], encoder="minilm", shards=2, encoders=2, batch_size=250)
                results[f"two actors, {name}"] = _rate(time.perf_counter() - started, n_built)
        finally:
            ray.shutdown()
            machines.shutdown()
        # Other load on the machine shows in the difference.
        results["one process, again"] = _alone(Path(folder) / "after", documents)
    build, overhead = (results[f"two actors, {name}"]["seconds"] for name in ("all documents", "one document"))
    results["two actors, all documents, without the time that one takes"] = _rate(build - overhead)
    report.write("ray-encoding", results, (*report.PACKAGES, "ray", "pylance"))


def _alone(place: Path, documents: list[dict[str, str]]) -> dict[str, float]:
    index = Index.create(place, "minilm")
    index.add([{"id": "warm", "text": "up"}])
    started = time.perf_counter()
    index.add(documents)
    return _rate(time.perf_counter() - started)


def _rate(seconds: float, n_documents: int = N_DOCUMENTS) -> dict[str, float]:
    return {"seconds": round(seconds, 1), "documents_a_second": round(n_documents / seconds, 1)}


if __name__ == "__main__":
    main()
