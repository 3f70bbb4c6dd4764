"""Types of every JSON file that is written: one module for each file. Pydantic and values only."""
