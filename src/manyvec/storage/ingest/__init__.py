"""From documents to stored rows: what has changed, what has to be encoded, and how far it is."""
