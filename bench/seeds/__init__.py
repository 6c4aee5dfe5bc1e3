"""The older designs that sennit's pools, registries and arrays began from, written anew to be measured beside ours.

They do what their authors' own accounts and our runs of them say, faults included: each fault is named where it is
written. Nobody should use them. `python bench/seeds` runs the two oldest experiments: lost updates and polled dependencies.

    pools      a pool that is called adaptive and has 32 OS threads; one that polls for work to steal; one that shrinks when busy
    tables     16 dicts behind 16 RLocks, called lock-free
    arrays     a pool of private arrays, called shared memory
"""
