"""Where trials run: processes on this machine, on its GPUs, or of a Dask cluster."""
