"""CMCD (CTA-5004, CTA-5004-A and -B): what stock players report of their playback.

    body of POST /v1/cmcd ─▶ parser.py: reports and bad lines ─▶ collect.py ─┬─▶ an event `cmcd` each
    argument or headers of a media request ─▶ parser.of_request              └─▶ evidence.py: heartbeats

`keys.py` knows the keys and their types. All but `collect.py` is pure.
"""
