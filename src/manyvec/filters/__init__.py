"""Metadata values, the typed columns they are filtered on, and the conditions of a search.

`values` decides what metadata may hold, `columns` what a declared column holds, `conditions` has `F` and what it makes,
`dialects` reads filters written as dicts, and `sql` writes a filter as SQL.
"""

from manyvec.filters.columns import ColumnType
from manyvec.filters.conditions import AllOf, AnyOf, Comparison, F, Filter, HasId, Not
from manyvec.filters.dialects import FilterLike, parse_filter
from manyvec.filters.sql import quote, to_sql

__all__ = [
    "AllOf",
    "AnyOf",
    "ColumnType",
    "Comparison",
    "F",
    "Filter",
    "FilterLike",
    "HasId",
    "Not",
    "parse_filter",
    "quote",
    "to_sql",
]
