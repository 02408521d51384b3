"""Methods, one file each; a file here is found by the registry METHODS.

A method whose loss is its own is registered beside it, in ``pckd/losses``.
"""
