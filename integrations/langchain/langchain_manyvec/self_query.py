"""`ManyvecTranslator`: structured queries of LangChain's `SelfQueryRetriever` as manyvec filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery, Visitor

from manyvec import AllOf, AnyOf, F, Filter

_COMPARISONS: dict[Comparator, Callable[[F, Any], Filter]] = {
    Comparator.EQ: F.__eq__,
    Comparator.NE: F.__ne__,
    Comparator.GT: F.__gt__,
    Comparator.GTE: F.__ge__,
    Comparator.LT: F.__lt__,
    Comparator.LTE: F.__le__,
    Comparator.CONTAIN: F.contains,
    Comparator.LIKE: lambda column, value: column.contains(value.strip("%"), ignore_case=True),
    Comparator.IN: F.in_,
    Comparator.NIN: F.not_in,
}


class ManyvecTranslator(Visitor):
    """Translates the structured queries that a language model writes.

        SelfQueryRetriever.from_llm(
            llm, store, "Papers", attributes, structured_query_translator=ManyvecTranslator()
        )

    `like` matches a substring in any case. `not` passes documents that none of its arguments match.
    """

    allowed_comparators = tuple(_COMPARISONS)
    allowed_operators = tuple(Operator)

    def visit_operation(self, operation: Operation) -> Filter:
        """Translate `and`, `or` and `not`."""
        self._validate_func(operation.operator)
        parts = tuple(argument.accept(self) for argument in operation.arguments)
        if operation.operator == Operator.AND:
            return AllOf(parts)
        return AnyOf(parts) if operation.operator == Operator.OR else ~AnyOf(parts)

    def visit_comparison(self, comparison: Comparison) -> Filter:
        """Translate the comparison of a metadata key with a value."""
        self._validate_func(comparison.comparator)
        return _COMPARISONS[comparison.comparator](F(comparison.attribute), _value(comparison.value))

    def visit_structured_query(self, structured_query: StructuredQuery) -> tuple[str, dict[str, Any]]:
        """Return the text to search for, and the search arguments with the filter."""
        if structured_query.filter is None:
            return structured_query.query, {}
        return structured_query.query, {"filter": structured_query.filter.accept(self)}


def _value(value: Any) -> Any:
    """Unwrap dates, which the query parser writes as `{"date": "2024-01-31", "type": "date"}`."""
    if isinstance(value, dict) and value.get("type") in ("date", "datetime"):
        return value.get("date", value.get("datetime"))
    return [_value(item) for item in value] if isinstance(value, (list, tuple)) else value
