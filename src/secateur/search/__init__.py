"""Proposes plans. Knows values only: what judges them is handed in."""
