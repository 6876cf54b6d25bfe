"""A population with known answers: households that watch over HTTP, and the truth of what they did, written beside it.

catalogue.py   what there is to watch       plans.py       what households may do      curves.py      when people watch
households.py  who lives where              people.py      who sits down               home.py        what all of it stands on
behaviours.py  what they do next            tempers.py     what they do about a block  surges.py      planted rises and decoys
player.py      one player instance          session.py     what it says, and hears     backend.py     devices that only fetch
view.py        one content, physically      wire.py        requests and their answers  network.py     what becomes of a request
world.py       time, events, requests       observe.py     what the engine says        truth.py       the lines that are written
run.py         a whole run
"""
