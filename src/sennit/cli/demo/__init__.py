"""`sennit demo`: a fleet of tasks reads a source tree, loses a worker on purpose, and accounts for every task.

records holds what is passed between tasks; plan, analysis, clones, review and report are plain functions on it;
model_server and client are the two ends of the model call. Nothing in here knows the runtime.
"""
