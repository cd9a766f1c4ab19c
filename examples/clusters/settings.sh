# Where a sweep's things live: for the driver and for the workers of every host. Edit it, and
# `. settings.sh` before the sweep; worker.sh, gpu-worker.sh and slurm.py read it themselves.
# No secret stands here: they are in files with mode 600.

# The studies: PostgreSQL, with the password in PGPASSFILE. Only the driver names it; workers get it.
export MLOPS_STUDY_URL=postgresql+psycopg://studies@db.example/studies
export PGPASSFILE=$HOME/.podium/pgpass

# One home for all, on a volume that every host mounts at this path, with locks (NFS 4, Lustre with
# flock). That is all; what is below is not needed then.
export MLOPS_HOME=/shared/podium

# Or homes of their own, where the hosts share no volume: a folder of each host's own disk that
# outlives the workers, a tracking server and datasets on S3. Comment out the home above, and take:
#export MLOPS_HOME=$HOME/.podium/home
#export MLFLOW_TRACKING_URI=https://podium.example:8443 # the login: ~/.mlflow/credentials
#export MLFLOW_TRACKING_SERVER_CERT_PATH=$HOME/.podium/ca.pem
#export MLOPS_DATASETS_URL=s3://datasets
#export AWS_ENDPOINT_URL=https://s3.example:8333
#export AWS_SHARED_CREDENTIALS_FILE=$HOME/.podium/aws
#export AWS_DEFAULT_REGION=us-east-1

# TLS between driver, scheduler and workers, with certificates of your own; addresses are tls://...
# then. One certificate may serve all three.
#export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True
#export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$HOME/.podium/dask-ca.pem
#for role in SCHEDULER WORKER CLIENT; do
#  export DASK_DISTRIBUTED__COMM__TLS__${role}__CERT=$HOME/.podium/dask.pem
#  export DASK_DISTRIBUTED__COMM__TLS__${role}__KEY=$HOME/.podium/dask.key
#done

# Own architectures are imported from here, on every host and by the scheduler too.
#export PYTHONPATH=/shared/architectures
