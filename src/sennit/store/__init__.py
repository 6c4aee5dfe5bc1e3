"""It is written down: the protocol of a store, and the stores. The only package that knows SQL or a driver."""
