"""Stream quality: what players tell (heartbeats, events, CMCD reports) becomes facts, and facts are asked in SQL (docs/quality.md)."""
