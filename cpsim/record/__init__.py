"""Recording of live traffic, by a proxy, as a trace for a replay.

client ──▶ proxy ──▶ target        every byte unchanged, in both directions
             └──▶ exchanges ──▶ recording (pseudonyms) ──▶ FILE
"""
