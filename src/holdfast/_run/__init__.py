"""Third floor: running workflow code. What a durable call is, in which order calls go on, who owns which
workflow.
"""
