"""Being here puts `tests/` on the import path: every test, however deep, can `from zoo import ...`."""
