"""How operators type it: options, tables, exit codes. The work is in `operations`."""
