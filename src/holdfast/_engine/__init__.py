"""Second floor: the long-lived machinery that any process needs to talk and wait. It knows no workflows."""
