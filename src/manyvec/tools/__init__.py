"""Select the few tools that fit a request out of a large catalog: `ToolIndex`."""
