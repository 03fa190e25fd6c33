"""The tools that fit a request, out of many: `ToolIndex`."""
