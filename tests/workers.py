"""An application as gunicorn, Celery and multiprocessing load it: index and encoder are used before a worker is forked.

The environment says which index (INDEX), which backend of its model (BACKEND) and where Celery's tasks write (ANSWERS).
"""

import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from manyvec import Index, load_encoder

index = Index.open(os.environ["INDEX"], load_encoder("minilm", backend=os.environ["BACKEND"]))


def search(searched=None):
    """Return the process that searched, and what it found."""
    hits = (searched or index).search("red apples", k=2, evidence=True)
    return {
        "pid": os.getpid(),
        "found": [(hit.id, round(hit.score, 3)) for hit in hits],
        "words": [word.text for word in hits[0].evidence.words],
    }


BEFORE = search()


def answer():
    return json.dumps({"before": BEFORE, "after": search()})


def wsgi(environ, start_response):
    """Answer every request with a search, slowly enough that the next one goes to the other worker."""
    body = answer().encode()
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
        path.with_suffix(".part").write_text(answer())
        path.with_suffix(".part").rename(path)

    @worker_ready.connect(weak=False)
    def send_tasks(**_):
        for number in range(2):
            search_and_write.delay(number)

    return app


def main():
    fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fork) as pool:
        print(json.dumps({"before": BEFORE, "after": pool.submit(search).result()}))
    with fork.Pool(2) as pool:
        for after in pool.map(search, [None, index], chunksize=1):
            print(json.dumps({"before": BEFORE, "after": after}))
    with ProcessPoolExecutor(1, spawn) as pool:
        print(json.dumps({"before": BEFORE, "after": pool.submit(search, index).result()}))


if __name__ == "__main__":
    main()
elif os.path.basename(sys.argv[0]) == "celery" or "celery" in sys.argv[0]:
    app = celery_app()
