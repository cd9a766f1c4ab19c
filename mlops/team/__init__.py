"""What a team's stack needs once: accounts, roles, secrets, databases.

    roles.py         pure: who may do what, by the name of an experiment or a model
    accounts_app.py  `mlflow server --app-name podium-accounts`: MLflow's accounts with those rules
    rules.py         what it refuses; grants.py: what it grants after a creation
    accounts.py      roles and accounts, over the server's API
    databases.py     databases, roles and buckets
    secrets.py       passwords, keys and certificates, as files; certificates.py: those of the door

`python -m mlops.init` runs them. Nothing here is imported where one person works alone.
"""
