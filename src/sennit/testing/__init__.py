"""For tests of programs built on sennit, and of stores: a contract suite, virtual time, a seeded simulator."""
