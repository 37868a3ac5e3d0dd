"""The replay: operations made to happen at an endpoint at their time, and a record of what was answered."""
