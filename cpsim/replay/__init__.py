"""The replay: operations sent to an endpoint at their times, and a journal of the answers."""
