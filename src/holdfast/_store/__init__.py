"""First floor: the statements as functions, one module per noun. No pool, no task, no waiting."""
