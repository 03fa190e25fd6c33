"""Why a document matched: the words of a text, the patches of a page, and how to show them."""
