"""What `secateur probe` can read off a model. Changes no model, opens no `test`."""
