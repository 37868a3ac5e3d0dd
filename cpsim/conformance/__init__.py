"""The conformance suite: what docs/protocol.md promises, clause by clause, as a pytest suite against any endpoint.

clause     what a clause is, and the catalogue of them all
target     what is examined, and how much of it can be seen
frames     raw connections to a daemon
exchange   raw HTTP requests to a server
accounts   a server's accounts, through its control API
transport  the way to a target
rehearsal  the way to nobody, for a dry run
examiner   what a clause sends, sees and expects
forwarding commands sent to a daemon, against their deliveries at the server behind it
upstream   that server, which is ours
walk       random sequences of commands, against the model
clauses    the clauses
plugin     the pytest plugin: pytest --pyargs cpsim.conformance -p cpsim.conformance.plugin
suite      a run of it, and its verdict
table      the verdict for people
"""
