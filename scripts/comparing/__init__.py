"""What ``scripts/compare.py`` is made of: one run in a process of its own, and the tables of all of them."""
