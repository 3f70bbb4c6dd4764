"""Types of the JSON files that training writes: one module for each verb. No torch."""
