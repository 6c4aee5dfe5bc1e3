"""4. It runs: one claimed attempt from hand-over to ending, on the loop, in an OS thread or in a process."""
