"""An index over HTTP: a web page, a JSON API and an MCP server."""
