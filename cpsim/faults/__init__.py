"""Faults on demand: their text form, and the plan that decides when they fire."""
