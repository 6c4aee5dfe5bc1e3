"""What belongs to a conversation: its state, and the questions of its tasks."""
