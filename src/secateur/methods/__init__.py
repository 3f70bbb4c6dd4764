"""Ways to find a plan, one file each: from a session to what was found. They open no `test` and write nothing."""
