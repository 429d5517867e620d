"""What each command does, a module per group: its arguments, then calls of the library.

Nothing here is imported before it is needed: ``kitsseg --help`` reads the arguments of all groups and must stay
instant, so rich, NumPy, Keras and the library are imported inside the functions.
"""
