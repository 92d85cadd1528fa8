"""Second floor: the long-lived machinery any process needs to talk and to wait. It knows nothing of workflows."""
