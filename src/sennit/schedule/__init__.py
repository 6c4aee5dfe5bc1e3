"""3. Its turn comes: the standing order, the one timer, the heartbeat, schedules. Nothing here polls."""
