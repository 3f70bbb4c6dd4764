"""Readings of `secateur probe`, with their records and pages. Changes no model, opens no `test`."""
