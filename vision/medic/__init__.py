"""MEDIC: one network for several classification tasks, trained on tables with missing labels."""
