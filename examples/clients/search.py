"""Search an index that `manyvec serve` offers, page by page, with Python's standard library.

    manyvec serve --index ./papers
    python examples/clients/search.py 'how did revenue grow'

Set MANYVEC_TOKEN if the server needs a token.
"""

import json
import os
import sys
from itertools import islice
from urllib.error import HTTPError
from urllib.request import Request, urlopen

URL = os.environ.get("MANYVEC_URL", "http://127.0.0.1:8765")
HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('MANYVEC_TOKEN', '')}"}


def search(query, **options):
    """Yield hits, best first; more of them are requested as they are needed."""
    offset = 0
    while offset is not None:
        body = json.dumps({"query": query, "offset": offset, **options}).encode()
        with urlopen(Request(f"{URL}/api/search", body, HEADERS)) as response:
            page = json.load(response)
        yield from page["hits"]
        offset = page["next_offset"]


if __name__ == "__main__":
    try:
        for hit in islice(search(sys.argv[1], k=5, passage_chars=300), 5):
            print(f"{hit['rank']}. {hit['id']}  {hit['similarity']:.2f}\n   {hit['passage']['text']}")
    except HTTPError as error:
        problem = json.load(error)
        sys.exit(f"{problem['code']}: {problem['detail']}")
