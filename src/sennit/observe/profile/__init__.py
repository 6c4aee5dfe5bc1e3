"""What a running Python program does with its OS threads: measured inside it, judged outside it.

watchers (gil, loop, locks, pools, copies) ─► Facts, as JSON ─► findings, ordered by what they would gain
"""
