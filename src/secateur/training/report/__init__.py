"""The page of a healed cut, made from heal.json. Knows records, no model and no torch."""
