"""A bite of every system that is in the house, and the report of them: ``make demo``."""
