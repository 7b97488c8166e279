"""``vision bench``: one module a system, each with ``measure(options)`` and ``tables(result)``."""
