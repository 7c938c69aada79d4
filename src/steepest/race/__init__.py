"""A fair comparison of optimizers on one task: equal tuning, paired seeds, an honest verdict.

`tasks` says what is trained, `entries` who takes part, `protocol` what is run (pure functions),
`trials` runs one training, `workers` runs many, `store` keeps them at a `place`, `claims` shares
them out among processes, `statistics` and `summary` judge them, `terminal` and `report` show them;
`conduct` ties the knot.
"""


class BadCall(ValueError):  # noqa: N818 - the call is wrong, nothing failed
    """The call was wrong: one line that says what was given, what was expected and what to do."""
