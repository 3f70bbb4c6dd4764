"""Values: sites, plans, scores, statistics, the ledger. Knows numpy and scipy; never torch, never a model."""
