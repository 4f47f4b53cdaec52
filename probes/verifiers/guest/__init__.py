"""What runs inside the sandbox: `probes.verifiers.sandbox` starts it there and talks to it.

`serve` takes one command after the other on stdin and answers each on stdout, in frames
(`values`). Every test gets a process of its own, forked from that one and confined (`limits`), that
reads nothing which the program under test must not see: expected outputs never come here, and the
assertions of a test are read by the process that makes them (`assertions`), while the program is
run by another one (`programs`). So a program can end, or spoil, its own test; it cannot say that it
has passed.

Only the standard library is there, and nothing of the rest of this package.
"""
