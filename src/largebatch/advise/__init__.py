"""How large the batch may be, and which rule should win: measured on a run, and proven where it can be."""
