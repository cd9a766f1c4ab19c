"""Private trainings: DP-SGD, what it promises and what trainings have spent.

`accounting` calibrates and composes, without JAX; `passes` trains, on JAX; `space` says what cannot
be private; `budget` adds up what all trainings of a sweep have spent.
"""
