"""``vision bench``: one module a system, each with ``measure(folder)``."""
