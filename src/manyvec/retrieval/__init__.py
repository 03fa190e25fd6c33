"""Find the documents that a query matches, and put them in order."""
