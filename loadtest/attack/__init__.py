"""`make attack`: a stack on loopback is attacked, one attack at a time, while somebody else's players are measured.

Start at `registry.py`, which names every attack. `__main__.py` runs each in turn: a stack of its own (`stack.py`), a process that is the
bystander (`bystander.py`), another that attacks (`attacker.py`), and a table (`report.py`).
"""
