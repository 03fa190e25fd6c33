"""An application as gunicorn, Celery and multiprocessing load it: the model is used before workers are forked.

The environment says which index (INDEX), which backend of its model (BACKEND) and where Celery's tasks write (ANSWERS).
"""

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

# Imported once, not by each worker. The index itself is opened in the workers: threads that LanceDB has started, and
# the locks that they wait for, do not survive a fork.
import lancedb  # noqa: F401

from manyvec import Index, load_encoder

LOADED_IN = os.getpid()
encoder = load_encoder("minilm", backend=os.environ["BACKEND"])
encoder.encode_documents(["Red apples are sweet."] * 8)
encoder.encode_queries(["red apples"])


def search():
    """Return which process has loaded the model, which one searched, and what it found."""
    with Index.open(os.environ["INDEX"], encoder) as index:
        hits = index.search("red apples", k=2, evidence=True, lexical_weight=0.3)
    return {
        "loaded in": LOADED_IN,
        "searched in": os.getpid(),
        "found": [[hit.id, hit.score] for hit in hits],
        "words": [word.text for word in hits[0].evidence.words],
    }


def wsgi(_, start_response):
    """Answer every request with a search, slowly enough that the next one goes to the other worker."""
    body = json.dumps(search()).encode()
    time.sleep(0.3)
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def celery_app():
    from celery import Celery
    from celery.signals import worker_ready

    app = Celery("workers", broker="memory://", task_ignore_result=True)

    @app.task
    def search_and_write(number):
        path = Path(os.environ["ANSWERS"]) / f"{number}.json"
        path.with_suffix(".part").write_text(json.dumps(search()))
        path.with_suffix(".part").rename(path)

    @worker_ready.connect(weak=False)
    def send_tasks(**_):
        for number in range(2):
            search_and_write.delay(number)

    return app


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, fork) as executor:
        print(json.dumps(executor.submit(search).result()))
    with fork.Pool(1) as pool:
        print(json.dumps(pool.apply(search)))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        # The spawned process loads this module, and with it the model, again.
        print(json.dumps(executor.submit(search).result() | {"loaded in": LOADED_IN}))
elif "celery" in Path(sys.argv[0]).parts or "celery" in sys.argv[0]:
    app = celery_app()
