"""For tests of programs that use holdfast, and for its own: databases, time, faults."""
