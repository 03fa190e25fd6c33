"""Evidence: why a document matched a query, as words of its text or patches of its page, and how to show it."""
