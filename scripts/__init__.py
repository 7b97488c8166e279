"""The entry points: the ``vision`` command and what stands behind its verbs."""
