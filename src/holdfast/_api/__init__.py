"""Fifth floor: what users hold. Runtimes and clients, composed of the floors below."""
