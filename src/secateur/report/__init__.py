"""Pages to look at: the engine, charts, tables, and the sections that every run has. Knows no method and no torch."""
