"""One LanceDB table: its schema, reading and writing it, and what is held of it in memory."""
