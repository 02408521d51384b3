"""Methods whose losses are several; every module here is found by the registry METHODS.

A method of one loss is registered beside it, in ``pckd/losses``.
"""
