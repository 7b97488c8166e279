"""``vision bench``: one module a system, with ``measure(options)``, ``tables(result)`` and ``pictures(result)``."""
