"""Augmentations of training images; every module here is found by the registry AUGMENTATIONS.

Shapes: B images, C channels, R random numbers an image.
"""
