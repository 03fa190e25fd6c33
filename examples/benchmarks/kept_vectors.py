"""What a second process saves that finds the token vectors of a bucket's index on its own disk.

python examples/benchmarks/kept_vectors.py

The bucket is moto's server in this process, so seconds are mostly its own; requests and bytes are those of any store.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
import time
from typing import Any

import boto3
import report
from moto.server import ThreadedMotoServer

from manyvec import Index
from manyvec.testing import HashEncoder

N_DOCUMENTS, N_WORDS = 20_000, 40
DRAW = random.Random(7)
WORDS = [f"w{i}" for i in range(2000)]
KEYS = {"aws_access_key_id": "AKIAEXAMPLE", "aws_secret_access_key": "s3cr3t-key"}


def main() -> None:
    received: list[str] = []
    log, handler = logging.getLogger("werkzeug"), logging.Handler()
    handler.emit = lambda record: received.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url, uri = f"http://{host}:{port}", "s3://papers/kept"
    boto3.client("s3", endpoint_url=url, region_name="us-east-1", **KEYS).create_bucket(Bucket="papers")
    options = {**KEYS, "endpoint": url, "allow_http": "true", "region": "us-east-1"}
    index = Index.create(uri, HashEncoder(128), storage="int8", storage_options=options)
    index.add([{"id": f"d{i}", "text": " ".join(DRAW.choices(WORDS, k=N_WORDS))} for i in range(N_DOCUMENTS)])
    index.optimize()
    info = index.info()
    results: dict[str, Any] = {"documents": N_DOCUMENTS, "tokens": info.tokens, "bytes": 130 * info.tokens}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MANYVEC_CACHE_FOLDER"] = folder
        for name in ("first process", "second process"):
            opened = Index.open(uri, HashEncoder(128), storage_options=options)
            received.clear()
            started = time.perf_counter()
            opened.search("w1 w2 w3")
            first = {"requests": len(received), "seconds": round(time.perf_counter() - started, 1)}
            # With centroid lists, the other vectors are read beside the searches.
            assert opened._reader._filling is not None
            opened._reader._filling.join()
            whole = {"requests": len(received), "seconds": round(time.perf_counter() - started, 1)}
            results[name] = {"first search": first, "until all vectors are in memory": whole}
    server.stop()
    report.write("kept-vectors", results)


if __name__ == "__main__":
    main()
