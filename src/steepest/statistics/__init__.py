"""What a race concludes from its numbers: tests, intervals, looks. Pure functions of arrays.

`inference`: paired differences to a baseline, for a fixed number of seeds. `looks`: paired
differences in a race that looks at its results several times. `descriptive`: numbers without a
test.
"""
