"""``vision export``: one module a system, each with ``main(arguments)``."""
