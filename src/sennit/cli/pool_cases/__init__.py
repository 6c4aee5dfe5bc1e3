"""What `sennit bench pools` and bench/pools.py measure: one module per family of cases.

measure    rounds, ratios, bounds and verdicts; knows nothing of pools
rivals     what ours stand beside: a shared queue, a static split, the standard library, joblib
threads    executors of OS threads: overhead, cold start, CPU, heavy tails, idle
processes  CPU jobs in processes
arrays     a large array on its way to other processes, and what they hold of it
tables     maps and registries under many OS threads, the batcher
bodies     the work: nothing, waiting, computing, heavy tails
"""
