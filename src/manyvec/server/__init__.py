"""Offer an index over HTTP and MCP: a web page, a JSON API and tools for agents."""
