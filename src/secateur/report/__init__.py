"""Pages to look at: one engine, charts, tables, templates, and what every run shows. Knows no method and no torch."""
