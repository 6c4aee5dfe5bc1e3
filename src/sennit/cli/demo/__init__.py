"""`sennit demo`: a fleet of tasks reads a source tree, loses a worker on purpose, and accounts for every task.

records holds what is passed between tasks; plan, analysis, clones, review and report are plain functions on it, and know
nothing of the runtime. model and client are the two ends of the model call; the provider between them is declared in fleet.
audit is what the coding agents do, auditors how the director watches them.
"""
