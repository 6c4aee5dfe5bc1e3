"""What a task is: pure values. No I/O, no clock, no OS threads, no randomness; those come in as arguments."""
