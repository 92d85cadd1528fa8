"""Fourth floor: what workflow code calls. One noun per room; each says what a call asks for and what its
answer means.
"""
