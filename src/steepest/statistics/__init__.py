"""What a race concludes from its numbers: tests, intervals, looks. Pure functions of arrays.

`inference`: paired differences to a baseline, for a fixed number of seeds. `looks`: the same for
a race that looks at its results several times. `descriptive`: numbers without a test.
"""
