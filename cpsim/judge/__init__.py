"""The judge compares what an endpoint did with the protocol. The judge shares no code with the fake."""
