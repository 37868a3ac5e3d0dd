"""Recording of live traffic, by a proxy, as a trace for a replay; or faults that it meets there.

client ──▶ proxy ──▶ target        every byte unchanged, in both directions
             ├──▶ exchanges ──▶ recording (pseudonyms) ──▶ FILE
             └──▶ frames, requests: whole exchanges meet the faults of a plan before they are forwarded
"""
