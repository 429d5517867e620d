"""The commands, one module for each group: the arguments of a command, then calls of the library.

``kitsseg --help`` reads the arguments of all groups and must be instant. Therefore rich, NumPy, Keras and the library
are imported inside the functions.
"""
