"""The truth about gains: what a cut model saves, dense against cut, beside the limit that its shapes set."""
