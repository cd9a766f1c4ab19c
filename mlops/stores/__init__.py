"""What keeps state, and how it is copied, upgraded, cleaned and erased.

    store.py           what every store is asked; finds them all
    stored_datasets.py, journal_store.py, tracking_store.py    the stores of mlops
    <part>_copy.py     its part of a backup, and of a restore
    <part>_upgrade.py  its schema
    <part>_retention.py, <part>_removal.py    what goes by age, and what an erasure takes
    <part>_rows.py     what both read of a database
    backup_record.py, file_copy.py, database_copy.py, schema_upgrade.py, database_check.py,
    database_removal.py, marker_search.py, trash.py            what several of them need

The programs are `mlops.backup`, `restore`, `upgrade`, `clean`, `erase` and `doctor`.
"""
