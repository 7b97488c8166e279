"""``vision infer``: one module a system, each with ``main(arguments)``."""
