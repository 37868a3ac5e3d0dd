"""The judge: says whether what an endpoint did is what the protocol says. It shares no code with the fake."""
