"""The scoreboard: what really happened in a simulated population, compared with what the engine says of it.

truth.py       the simulator's lines, read                 households.py  who held which slot, by the truth
blocks.py, slots.py, positions.py, views.py, counts.py, trends.py, conservation.py    the figures: pure functions
figures.py     what a figure finds, and how seeds are added up        goals.py   the table of goals
deployment.py  a real deployment in virtual time           questions.py   what the engine is asked at the end
run.py         one seed, all seeds                         report.py, plots.py   the table and the HTML page
"""
