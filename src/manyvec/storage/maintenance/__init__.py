"""Keep an index in shape: optimize it, check and repair it, add filter columns to it."""
