"""The LanceDB tables of an index: schema, reading, writing, maintenance, and token vectors in memory."""
