"""Send searches to a running `manyvec serve` from many clients, and print latencies and errors as JSON.

    python examples/deploy/load_test.py http://127.0.0.1:8765 --clients 32 --seconds 60 --queries questions.txt

Each client sends its next query when it has the response to the last. MANYVEC_TOKEN is sent if it is set. Exits with 1
if a request failed.
"""

import argparse
import http.client
import json
import os
import statistics
import sys
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit


def client(address, queries, until, first, seconds, statuses):
    """Search until the time is over; add the seconds and the status of each request."""
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("MANYVEC_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    connection_to = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = connection_to(address.hostname, address.port, timeout=120)
    for number in count(first):
        if time.monotonic() > until:
            break
        started = time.monotonic()
        try:
            body = json.dumps({"query": queries[number % len(queries)], "k": 5})
            connection.request("POST", "/api/search", body, headers)
            response = connection.getresponse()
            response.read()
            statuses.append(str(response.status))
        except (OSError, http.client.HTTPException) as error:
            statuses.append(type(error).__name__)
            connection.close()
        seconds.append(time.monotonic() - started)
    connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queries", type=Path, help="file with a query in each line")
    options = parser.parse_args()
    text = options.queries.read_text(encoding="utf8") if options.queries else "who discovered it\nhow many were there"
    queries, address = [line for line in text.splitlines() if line.strip()], urlsplit(options.url)
    # list.append is atomic, so that threads may share these.
    seconds: list[float] = []
    statuses: list[str] = []
    started = time.monotonic()
    arguments = [(address, queries, started + options.seconds, i, seconds, statuses) for i in range(options.clients)]
    threads = [threading.Thread(target=client, args=given) for given in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    steps = statistics.quantiles([1000 * taken for taken in seconds], n=100, method="inclusive")
    result = {
        "clients": options.clients,
        "searches": len(seconds),
        "searches per second": round(len(seconds) / (time.monotonic() - started), 1),
        "milliseconds": {f"p{n}": round(steps[n - 1], 1) for n in (50, 95, 99)},
        "statuses": dict(Counter(statuses)),
    }
    print(json.dumps(result, indent=2))
    return int(set(statuses) != {"200"})


if __name__ == "__main__":
    sys.exit(main())
