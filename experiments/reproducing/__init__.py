"""Making a training again, from what its run says of itself.

`recipe` is all that decides a training's weights and `environment` where it ran; both stand on each
run. `original` finds the run behind what a user names, `retraining` trains it again in a process of
its own, and `comparing` tells the two apart.
"""
