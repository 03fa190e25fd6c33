"""Send hostile filters through every interface, and compare what passes with the filter's meaning in plain Python.

    python examples/campaigns/filters.py [--cases 10000] [--seed 0]

Interfaces are `Index.ids`, LangChain's and LlamaIndex's retrievers, the command line, HTTP and MCP. A case is one or
two comparisons of declared columns with values that people, frameworks, language models and attackers send, joined and
negated. A filter may be refused with an error of manyvec, unless its value plainly fits the column; what passes must be
exactly what passes in Python. Writes `results/filters.json` and exits with 1 if anything else happened.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import io
import json
import logging
import math
import random
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import httpx2
import mcp
import numpy as np
import pandas as pd
import results
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.retrievers.manyvec import ManyvecRetriever as ManyvecNodeRetriever

from langchain_manyvec import ManyvecRetriever
from manyvec import Index, ManyvecError
from manyvec.cli import main as command_line
from manyvec.server.api import Api, Searches
from manyvec.server.app import create_app
from manyvec.server.mcp import ServedIndex, mcp_server
from manyvec.testing import HashEncoder

COLUMNS = {
    "year": int,
    "price": float,
    "lang": str,
    "open": bool,
    "seen": datetime,
    "tags": list[str],
    "sizes": list[int],
}


class Color(Enum):
    RED = "en"
    YEAR = 2020


STRINGS = [
    "en", "EN", "it's", "%", "_", "e%", "\\", "\\%", "'", "''", "' OR '1'='1", "x' OR true --",
    "'; DROP TABLE documents; --", "NULL", "null", "true", "False", "", " ", "en\x00", "\x00", "🍎", "日本語",
    "\ud800", "a" * 3000, "2020", "2020.0", "+2020", "1e3", "2026-01-02", "2026-01-02T03:04:05Z",
    "0001-01-01", "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "2026-02-30", "NaN", "inf",
    "1e999", "9" * 30, "9" * 5000, "$gt", "lang", "`", "\"", "1_000", "１２", "-0",
]  # fmt: skip
UTC = timezone.utc
VALUES: list[Any] = [
    *STRINGS, 0, 1, -1, 2020, 2021, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**400, True, False,
    None, 0.0, -0.0, 1.5, 2020.0, 2020.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
    date(2026, 1, 2), date(1, 1, 1), date.max, datetime(1, 1, 1),
    datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))), datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
    datetime.max, datetime(999, 12, 31, tzinfo=UTC), Decimal("1.5"), Decimal(2020), Decimal("NaN"),
    Decimal("Infinity"), Decimal("1e400"), Color.RED, Color.YEAR, UUID(int=5), PurePosixPath("a/b"),
    np.int64(2020), np.uint8(1), np.float32(1.5), np.float64("nan"), np.bool_(True), np.str_("en"),
    np.datetime64("2026-01-02"), np.datetime64("NaT"), np.array(2020), np.array([2020]),
    pd.Timestamp("2026-01-02", tz="UTC"), pd.NaT, pd.NA, b"en", 1j, object, {"a": 1}, {"$gt": 1}, [],
    [None], [[]], ["en", "it's"], [2020, "x"], {"en"}, (1, 2), range(3),
]  # fmt: skip
DOCUMENT_VALUES: dict[str, list[Any]] = {
    "year": [None, 0, 1, -1, 2020, 2021, 2**53 + 1, 2**63 - 1, -(2**63)],
    "price": [None, 0.0, 1.5, -1.5, 2020.0, 1e308, 5e-324],
    "lang": [None, "", " ", "en", "EN", "it's", "%", "_", "\\", "'", "NULL", "true", "2020", "🍎", "日本語", "en\x00",
        "a" * 3000],
    "open": [None, True, False],
    "seen": [None, datetime(1, 1, 1, tzinfo=UTC), datetime(999, 12, 31, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC),
        datetime(2026, 1, 2, 3, 4, 5, 6, UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)],
    "tags": [None, [], ["en"], ["en", "it's"], ["", "🍎"], ["%"]],
    "sizes": [None, [], [1], [2020, -1], [2**63 - 1]],
}  # fmt: skip


def documents() -> list[dict[str, Any]]:
    rng = random.Random(7)
    made = [{"id": "nothing", "text": "note", "metadata": {}}]
    for number in range(60):
        metadata = {column: rng.choice(values) for column, values in DOCUMENT_VALUES.items()}
        made.append({"id": f"d{number}", "text": "note", "metadata": metadata})
    return made


# Shares of the interfaces, in the order of `run`: an agent's call takes ten times as long as the core's.
WEIGHTS = [8, 3, 3, 3, 1, 8]


class RefusedError(Exception):
    """The value means nothing for the column."""


def meaning(value: Any, kind: type) -> Any:
    """Return the value that a filter's value stands for in a column of this type."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.datetime64) and not np.isnat(value):
        value = value.astype("datetime64[us]").item()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (UUID, PurePosixPath)):
        value = str(value)
    if value is None or value is pd.NaT or value is pd.NA or isinstance(value, np.datetime64):
        raise RefusedError
    if isinstance(value, pd.Timestamp):
        value = value.to_pydatetime()
    if isinstance(value, str):
        return _meaning_of_string(value, kind)
    if isinstance(value, bool) is not (kind is bool) or (isinstance(value, Decimal) and value.is_nan()):
        raise RefusedError
    if kind is bool:
        return value
    if kind in (int, float) and isinstance(value, (int, float, Decimal)) and -math.inf < value < math.inf:
        return value
    if kind is str and isinstance(value, (Decimal, date)):
        return value.isoformat() if isinstance(value, date) else str(value)
    if kind is datetime and isinstance(value, date):
        return _utc(value)
    raise RefusedError


def _meaning_of_string(value: str, kind: type) -> Any:
    if kind is str:
        return value
    try:
        if kind is int:
            number = Decimal(value) if re.fullmatch(r"[+-]?\d{1,19}(\.0+)?", value) else None
            return int(number) if number is not None else _refuse()
        if kind is float:
            return float(value)
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        return _utc(datetime.fromisoformat(value.replace("Z", "+00:00")))
    except (ValueError, KeyError, ArithmeticError):
        raise RefusedError from None


def _refuse() -> Any:
    raise RefusedError


def _utc(value: date) -> datetime:
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise RefusedError from None


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda stored, value: stored == value,
    "<": lambda stored, value: stored < value,
    "<=": lambda stored, value: stored <= value,
    ">": lambda stored, value: stored > value,
    ">=": lambda stored, value: stored >= value,
}
DIALECT = {"==": "$eq", "!=": "$ne", "<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte", "in": "$in", "not in": "$nin",
    "contains": "$contains", "like": "$like"}  # fmt: skip
LLAMA = {op: op for op in ("==", "!=", "<", "<=", ">", ">=", "in", "contains")} | {"not in": "nin"}


@dataclass
class Comparison:
    column: str
    op: str
    value: Any

    def passes(self, stored: Any) -> bool:
        """Whether a document with this value passes.

        Raises:
            RefusedError: The comparison has no meaning.
        """
        kind = COLUMNS.get(self.column)
        if kind is None:
            raise RefusedError
        is_list = kind in (list[str], list[int])
        scalar = {list[str]: str, list[int]: int}.get(kind, kind)
        op = {"!=": "==", "not in": "in"}.get(self.op, self.op)
        return self._holds(stored, op, scalar, is_list) is not (op != self.op)

    def _holds(self, stored: Any, op: str, scalar: type, is_list: bool) -> bool:
        if op == "==" and self.value is None:
            return stored is None
        fits = op == "contains" if is_list else op not in ("contains", "like") or scalar is str
        if not fits:
            raise RefusedError
        if op == "in":
            is_listed = isinstance(self.value, (list, tuple, set)) or (
                isinstance(self.value, np.ndarray) and self.value.ndim
            )
            if not is_listed:
                raise RefusedError
            wanted = [meaning(value, scalar) for value in self.value]
            return stored is not None and stored in wanted
        wanted = meaning(self.value, scalar)
        if stored is None:
            return False
        if op == "contains":
            return wanted in stored
        if op == "like":
            pattern = "".join({"%": ".*", "_": "."}.get(letter, re.escape(letter)) for letter in wanted)
            return re.fullmatch(pattern, stored, re.DOTALL) is not None
        return COMPARE[op](stored, wanted)

    @property
    def is_plain(self) -> bool:
        """Whether the value is of the column's own type, so that it must not be refused."""
        kind = COLUMNS.get(self.column)
        if self.op not in COMPARE or type(self.value) is not kind:
            return False
        if kind is int:
            return -(2**63) <= self.value < 2**63
        if kind is float:
            return math.isfinite(self.value)
        if kind is str:
            return "\ud800" not in self.value
        return kind is not datetime or self.value.utcoffset() is None


@dataclass
class Case:
    comparisons: list[Comparison]
    connective: str = "$and"
    is_negated: bool = False

    def passes(self, metadata: dict[str, Any]) -> bool:
        held = [one.passes(metadata.get(one.column)) for one in self.comparisons]
        return (all(held) if self.connective == "$and" else any(held)) is not self.is_negated

    def spec(self, rng: random.Random) -> Any:
        """Write the filter as a dict in LangChain's dialect, or as conditions."""
        written = [
            {one.column: {DIALECT[one.op]: one.value}}
            if rng.random() < 0.6 or (len(self.comparisons) > 1 and self.connective == "$or" and rng.random() < 0.5)
            else {"column": one.column, "op": one.op, "value": one.value}
            for one in self.comparisons
        ]
        whole: Any = written[0] if len(written) == 1 else {self.connective: written}
        for _ in range(rng.choice([0, 0, 0, 1, 5, 17])):
            whole = {"$and": [whole]}
        return {"$not": whole} if self.is_negated else whole


def drawn(rng: random.Random) -> Case:
    def comparison() -> Comparison:
        column = rng.choice([*COLUMNS, *COLUMNS, *COLUMNS, "id", "vector", "lang' OR true --", "f_lang`", ""])
        op = rng.choice(list(DIALECT))
        value = rng.choice(DOCUMENT_VALUES[column]) if column in COLUMNS and rng.random() < 0.6 else rng.choice(VALUES)
        if op in ("in", "not in") and rng.random() < 0.8:
            pool = DOCUMENT_VALUES[column] if column in COLUMNS and rng.random() < 0.6 else VALUES
            value = [rng.choice(pool) for _ in range(rng.choice([0, 1, 2, 3]))]
        if rng.random() < 0.03:
            for _ in range(rng.choice([3, 60, 400])):
                value = [value]
        return Comparison(column, op, value)

    return Case([comparison() for _ in range(rng.choice([1, 1, 2]))], rng.choice(["$and", "$or"]), rng.random() < 0.25)


class Interfaces:
    """Ways to the same index. Each returns the ids, or the number of documents, that pass, or None if it refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = Index.create(folder, HashEncoder(), filter_columns=COLUMNS)
        self.index.add(documents())
        self.langchain = ManyvecRetriever(index=self.index, k=99)
        self.llama_index = ManyvecNodeRetriever(index=self.index, similarity_top_k=99)
        self.app = create_app(self.index)
        api = Api(self.index)
        self.mcp = mcp_server(ServedIndex(api, Searches(api), api.name))

    async def core(self, case: Case, spec: Any) -> Any:
        return set(self.index.ids(spec))

    async def langchain_retriever(self, case: Case, spec: Any) -> Any:
        return {document.id for document in self.langchain.invoke("note", filter=spec)}

    async def llama_index_retriever(self, case: Case, spec: Any) -> Any:
        filters: Any = spec
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if not case.is_negated:
                parts = [
                    MetadataFilter(key=one.column, operator=FilterOperator(LLAMA[one.op]), value=one.value)
                    for one in case.comparisons
                ]
                # A `MetadataFilter` may have turned the value into another one, and has a meaning of its own for None
                # and, as it takes no bools, for 0 and 1 of a bool column.
                if all(
                    p.value is one.value and one.column != "open"
                    for p, one in zip(parts, case.comparisons, strict=True)
                ) and not any(part.value is None or isinstance(part.value, bool) for part in parts):
                    filters = MetadataFilters(filters=parts, condition=case.connective.lstrip("$"))
        return {node.node_id for node in self.llama_index.with_options(filters=filters).retrieve("note")}

    async def http(self, case: Case, spec: Any) -> Any:
        try:
            body = json.dumps({"query": "note", "k": 99, "filter": spec})
        except (TypeError, ValueError):
            return ...
        transport = httpx2.ASGITransport(self.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            response = await client.post("/api/search", content=body, headers={"Content-Type": "application/json"})
        if response.status_code in (400, 413, 422):
            return None
        if response.status_code != 200:
            raise AssertionError(f"status {response.status_code}: {response.text[:200]}")
        return {hit["id"] for hit in response.json()["hits"]}

    async def agent(self, case: Case, spec: Any) -> Any:
        try:
            written = json.dumps(spec)
        except (TypeError, ValueError):
            return ...
        if "[" * 100 in written or "NaN" in written or "Infinity" in written:
            # The client itself does not send such nesting, and sends null for such numbers.
            return ...
        spec = json.loads(written)
        async with mcp.Client(self.mcp) as client:
            result = await client.call_tool("search", {"query": "note", "k": 99, "filter": spec})
        if result.is_error:
            message = result.content[0].text
            if "server failed" in message or "cannot be read" in message or "Traceback" in message:
                raise AssertionError(message[:200])
            return None
        return {hit["id"] for hit in result.structured_content["hits"]}

    async def command_line(self, case: Case, spec: Any) -> Any:
        conditions = []
        for one in case.comparisons:
            op = {"contains": "~"}.get(one.op, one.op)
            value = one.value
            if op not in ("==", "!=", "<", "<=", ">", ">=", "~") or case.connective != "$and" or case.is_negated:
                return ...
            if not isinstance(value, str) or value != value.strip() or value[:1] in ("=", "<", ">", "!", "~"):
                return ...
            if not value or not one.column or re.search("[<>=!~]", one.column):
                return ...
            conditions += ["--where", f"{one.column}{op}{value}"]
        if not conditions:
            return ...
        written = io.StringIO()
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
            status = command_line(["delete", "--index", str(self.folder), *conditions, "--dry-run", "--json"])
        if "Traceback" in written.getvalue():
            raise AssertionError(written.getvalue()[-200:])
        return json.loads(written.getvalue())["deleted"] if status == 0 else None


def fault_of(case: Case, passed: Any, stored: dict[str, dict[str, Any]]) -> str | None:
    try:
        expected = {id for id, metadata in stored.items() if case.passes(metadata)}
    except RefusedError:
        return None if passed is None else f"a filter without meaning passed {passed!r:.100}"
    if passed is None:
        return "a plain filter was refused" if all(one.is_plain for one in case.comparisons) else None
    if passed == (len(expected) if isinstance(passed, int) else expected):
        return None
    return f"{passed!r:.100} instead of {expected!r:.100}"


async def run(n_cases: int, seed: int, folder: Path, output: Path) -> int:
    rng = random.Random(seed)
    interfaces = Interfaces(folder)
    stored = {document["id"]: document["metadata"] for document in documents()}
    # The server logs the traceback of each error that it answers.
    logging.getLogger("manyvec").setLevel(logging.CRITICAL)
    ways = [interfaces.core, interfaces.langchain_retriever, interfaces.llama_index_retriever, interfaces.http,
        interfaces.agent, interfaces.command_line]  # fmt: skip
    counts: dict[str, collections.Counter[str]] = {way.__name__: collections.Counter() for way in ways}
    faults: list[str] = []
    n_done = 0
    while n_done < n_cases:
        case = drawn(rng)
        spec, way = case.spec(rng), rng.choices(ways, WEIGHTS)[0]
        try:
            passed = await way(case, spec)
        except ManyvecError:
            passed = None
        except Exception as error:
            faults.append(f"{way.__name__} {case!r:.300}: {type(error).__name__}: {error!s:.200}")
            passed = ...
            n_done += 1
        if passed is ...:
            # This interface cannot say it.
            continue
        n_done += 1
        counts[way.__name__]["refused" if passed is None else "answered"] += 1
        if fault := fault_of(case, passed, stored):
            faults.append(f"{way.__name__} {case!r:.300}: {fault}")
        if n_done % 1_000 == 0 or n_done == n_cases:
            by_interface = {name: dict(counter) for name, counter in counts.items()}
            summary = {
                "cases": n_done,
                "faults": len(faults),
                "first faults": faults[:20],
                "by interface": by_interface,
            }
            results.write(output, summary | {"by interface": by_interface}, final=n_done >= n_cases)
    return len(faults)


def main(arguments: list[str] | None = None) -> int:
    parser = results.parser(__doc__, "filters")
    parser.add_argument("--cases", type=int, default=10_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(options.cases, options.seed, Path(folder) / "index", options.output)) > 0


if __name__ == "__main__":
    sys.exit(main())
