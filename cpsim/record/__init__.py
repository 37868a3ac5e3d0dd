"""Live traffic, captured on its way and written as a trace that a replay can have.

client ──▶ proxy ──▶ target        every byte unchanged, both ways
             └──▶ exchanges ──▶ recording (pseudonyms) ──▶ FILE
"""
