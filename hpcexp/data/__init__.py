"""Light data sources: planning reads their facts without torch or numpy; samples are read in the job."""
